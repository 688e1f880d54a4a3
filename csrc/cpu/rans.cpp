#include <algorithm>
#include <array>
#include <numeric>

#include "../kernels.h"
#include "bit_stream.h"

namespace ddp_compress {

namespace {

constexpr int kMaxAlphabet = 65;  // two signs of 32 levels, and zero
constexpr int kTotalBits = 12;
constexpr uint32_t kTotal = 1 << kTotalBits;
constexpr uint32_t kLow = 1 << 23;  // states stay within [kLow, 256 * kLow)

using Frequencies = std::array<uint32_t, kMaxAlphabet>;  // 0 where a symbol does not occur

// Frequencies near the symbols' shares of kTotal, in integers alone. Each share is rounded, 1 at
// least, and the most frequent symbol takes the difference. That never uses it up: a share below
// one half gains less than 1 and any other at most one half, less than 65 in all and less than 33
// where all shares are alike, 63 each.
Frequencies normalized(const uint8_t* symbols, int64_t count) {
  std::array<int64_t, kMaxAlphabet> counts{};
  for (int64_t i = 0; i < count; ++i) ++counts[symbols[i]];
  Frequencies frequencies{};
  for (int s = 0; s < kMaxAlphabet; ++s) {
    if (counts[s] == 0) continue;
    const int64_t share = (2 * kTotal * counts[s] + count) / (2 * count);
    frequencies[s] = static_cast<uint32_t>(std::max<int64_t>(share, 1));
  }
  const uint32_t sum = std::accumulate(frequencies.begin(), frequencies.end(), 0u);
  *std::max_element(frequencies.begin(), frequencies.end()) += kTotal - sum;  // modulo 2**32
  return frequencies;
}

Frequencies starts_of(const Frequencies& frequencies) {
  Frequencies starts{};
  std::exclusive_scan(frequencies.begin(), frequencies.end(), starts.begin(), 0u);
  return starts;
}

std::vector<uint8_t> write_table(const Frequencies& frequencies, int alphabet) {
  const auto occurring = std::count_if(frequencies.begin(), frequencies.end(),
                                       [](uint32_t frequency) { return frequency > 0; });
  std::vector<uint8_t> out(static_cast<size_t>(bytes_for(alphabet + kTotalBits * (occurring - 1))));
  BitWriter writer(out.data());
  for (int s = 0; s < alphabet; ++s) writer.put(frequencies[s] > 0, 1);
  int64_t left = occurring - 1;
  for (int s = 0; left > 0; ++s) {
    if (frequencies[s] == 0) continue;
    writer.put(frequencies[s] - 1, kTotalBits);
    --left;
  }
  writer.finish();
  return out;
}

// Returns the bytes read, or a DecodeError.
int64_t read_table(const uint8_t* data, int64_t size, int alphabet, Frequencies& frequencies) {
  BitReader in(data, size);
  int last = -1;
  for (int s = 0; s < alphabet; ++s) {
    frequencies[s] = static_cast<uint32_t>(in.take(1));
    if (frequencies[s] > 0) last = s;
  }
  if (in.left() < 0) return kTruncated;
  if (last < 0) return kBadTable;
  uint32_t sum = 0;
  for (int s = 0; s < last; ++s) {
    if (frequencies[s] == 0) continue;
    frequencies[s] = static_cast<uint32_t>(in.take(kTotalBits)) + 1;
    sum += frequencies[s];
  }
  if (in.left() < 0) return kTruncated;
  if (sum >= kTotal) return kBadTable;
  frequencies[last] = kTotal - sum;
  const int64_t bytes = bytes_for(in.position());
  if (in.take(static_cast<int>(8 * bytes - in.position())) != 0) return kDirtyPadding;
  return bytes;
}

bool one_alone(const Frequencies& frequencies) {
  return std::find(frequencies.begin(), frequencies.end(), kTotal) != frequencies.end();
}

}  // namespace

std::vector<uint8_t> rans_encode(const uint8_t* symbols, int64_t count, int alphabet) {
  if (count == 0) return {};
  const Frequencies frequencies = normalized(symbols, count);
  std::vector<uint8_t> out = write_table(frequencies, alphabet);
  if (one_alone(frequencies)) return out;

  const Frequencies starts = starts_of(frequencies);
  const auto table_bytes = static_cast<std::ptrdiff_t>(out.size());
  uint32_t state = kLow;
  // What is written last is read first: from the last symbol to the first, then turned around.
  for (int64_t i = count - 1; i >= 0; --i) {
    const uint32_t frequency = frequencies[symbols[i]];
    for (; state >= (kLow >> kTotalBits << 8) * frequency; state >>= 8)
      out.push_back(static_cast<uint8_t>(state));
    state = (state / frequency << kTotalBits) + state % frequency + starts[symbols[i]];
  }
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<uint8_t>(state >> shift));
  std::reverse(out.begin() + table_bytes, out.end());
  return out;
}

int64_t rans_decode(const uint8_t* data, int64_t size, int64_t count, int alphabet,
                    uint8_t* symbols) {
  if (count == 0) return 0;
  Frequencies frequencies{};
  int64_t used = read_table(data, size, alphabet, frequencies);
  if (used < 0) return used;

  const Frequencies starts = starts_of(frequencies);
  std::array<uint8_t, kTotal> symbol_of;
  for (int s = 0; s < alphabet; ++s)
    std::fill_n(symbol_of.begin() + starts[s], frequencies[s], static_cast<uint8_t>(s));
  if (one_alone(frequencies)) {
    std::fill_n(symbols, count, symbol_of[0]);
    return used;
  }

  if (size - used < 4) return kTruncated;
  uint32_t state = 0;
  for (int shift = 0; shift < 32; shift += 8) state |= uint32_t{data[used++]} << shift;
  if (state < kLow || state >= kLow << 8) return kBadState;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t slot = state % kTotal;
    const uint8_t symbol = symbol_of[slot];
    symbols[i] = symbol;
    state = frequencies[symbol] * (state >> kTotalBits) + slot - starts[symbol];
    while (state < kLow) {
      if (used == size) return kTruncated;
      state = state << 8 | data[used++];
    }
  }
  return state == kLow ? used : static_cast<int64_t>(kBadState);
}

}  // namespace ddp_compress
