#include <algorithm>
#include <bit>
#include <cmath>

#include "../kernels.h"
#include "bit_stream.h"

namespace ddp_compress {

namespace {

constexpr int kMaxParameter = 31;
constexpr int kParameterBits = 5;

int count_bits(int64_t numel) { return std::bit_width(static_cast<uint64_t>(numel)); }

// The Rice parameter of least cost for gaps of a given density, were they geometric.
int expected_parameter(int64_t count, int64_t numel) {
  const double density = static_cast<double>(count) / static_cast<double>(numel);
  const double log_phi = std::log((std::sqrt(5.0) - 1) / 2);
  const double b = 1 + std::floor(std::log2(log_phi / std::log1p(-density)));
  return static_cast<int>(std::clamp(b, 0.0, double{kMaxParameter}));
}

int64_t code_bits(const std::vector<uint32_t>& gaps, int b) {
  uint64_t ones = 0;
  for (const uint32_t gap : gaps) ones += gap >> b;
  return static_cast<int64_t>(ones + gaps.size() * static_cast<uint64_t>(b + 1));
}

struct Rice {
  int b;
  int64_t bits;
};

// The least b of least cost. The cost is convex in b: one more bit saves the sum of
// ceil((gap >> b) / 2) ones, which only falls with b. So a local minimum is the minimum.
Rice choose(const std::vector<uint32_t>& gaps, int start) {
  Rice best{start, code_bits(gaps, start)};
  while (best.b > 0) {
    const int64_t bits = code_bits(gaps, best.b - 1);
    if (bits > best.bits) break;
    best = {best.b - 1, bits};
  }
  while (best.b < kMaxParameter) {
    const int64_t bits = code_bits(gaps, best.b + 1);
    if (bits >= best.bits) break;
    best = {best.b + 1, bits};
  }
  return best;
}

struct Section {
  int width;  // bits of the count
  Rice rice;
  std::vector<uint32_t> gaps;

  int64_t bits() const { return width + (gaps.empty() ? 0 : kParameterBits + rice.bits); }
};

Section make_section(const int32_t* indices, int64_t count, int64_t first, int64_t numel) {
  Section section{count_bits(numel), {0, 0}, std::vector<uint32_t>(static_cast<size_t>(count))};
  if (count == 0) return section;
  section.gaps[0] = static_cast<uint32_t>(indices[0] - first);
  for (int64_t i = 1; i < count; ++i) {
    section.gaps[i] = static_cast<uint32_t>(indices[i] - indices[i - 1] - 1);
  }
  section.rice = choose(section.gaps, expected_parameter(count, numel));
  return section;
}

void write(const Section& section, BitWriter& writer) {
  writer.put(section.gaps.size(), section.width);
  if (section.gaps.empty()) return;
  const int b = section.rice.b;
  writer.put(static_cast<uint64_t>(b), kParameterBits);
  for (const uint32_t gap : section.gaps) {
    int ones = static_cast<int>(gap >> b);
    const uint64_t low = gap & low_mask(b);
    if (ones + 1 + b > 63) {
      writer.repeat(true, ones);
      ones = 0;
    }
    writer.put(low_mask(ones) | low << (ones + 1), ones + 1 + b);
  }
}

// Reads the gaps of one parameter into `indices`; returns 0 or a DecodeError.
int64_t read(BitReader& in, int b, int64_t count, int64_t first, int64_t numel, int32_t* indices) {
  const uint64_t mask = low_mask(b);
  int64_t position = -1;
  for (int64_t i = 0; i < count;) {
    // All codes that end in a word, which has zeros behind the bytes' end.
    uint64_t word = in.peek();
    int used = 0;
    for (; i < count; ++i) {
      const int ones = std::countr_one(word), length = ones + 1 + b;
      if (used + length > BitReader::kPeek) break;
      used += length;
      position += 1 + static_cast<int64_t>(uint64_t(ones) << b | (word >> (ones + 1) & mask));
      if (position >= numel) return in.left() < used ? kTruncated : kOutOfRange;
      indices[i] = static_cast<int32_t>(first + position);
      word >>= length;
    }
    in.skip(used);
    if (in.left() < 0) return kTruncated;
    if (used > 0) continue;

    const int64_t ones = in.take_unary();
    const auto low = static_cast<int64_t>(in.take(b));
    if (in.left() < 0) return kTruncated;
    if (ones > numel >> b) return kOutOfRange;  // first, so that the shift below cannot overflow
    position += 1 + (ones << b | low);
    if (position >= numel) return kOutOfRange;
    indices[i++] = static_cast<int32_t>(first + position);
  }
  return 0;
}

}  // namespace

std::vector<uint8_t> golomb_encode(const int32_t* indices, int64_t count, const int64_t* bounds,
                                   int64_t params) {
  std::vector<Section> sections;
  int64_t bits = 0;
  const int32_t* next = indices;
  for (int64_t p = 0; p < params; ++p) {
    const int64_t numel = bounds[p + 1] - bounds[p];
    if (numel == 0) continue;
    const int32_t* start = next;
    next = std::lower_bound(start, indices + count, bounds[p + 1]);
    sections.push_back(make_section(start, next - start, bounds[p], numel));
    bits += sections.back().bits();
  }
  std::vector<uint8_t> out(static_cast<size_t>(bytes_for(bits)));
  BitWriter writer(out.data());
  for (const Section& section : sections) write(section, writer);
  writer.finish();
  return out;
}

// For each parameter: is there a count, may it be that large, can its codes fit into the bytes
// left; then each code must end, and end inside its parameter. reference/golomb.py does the same.
int64_t golomb_decode(const uint8_t* data, int64_t size, const int64_t* bounds, int64_t params,
                      int64_t limit, int32_t* indices, int64_t* found) {
  BitReader in(data, size);
  *found = 0;
  for (int64_t p = 0; p < params; ++p) {
    const int64_t numel = bounds[p + 1] - bounds[p];
    if (numel == 0) continue;
    const int64_t count = static_cast<int64_t>(in.take(count_bits(numel)));
    if (in.left() < 0) return kTruncated;
    if (count > numel || *found + count > limit) return kTooMany;
    if (count == 0) continue;

    const int b = static_cast<int>(in.take(kParameterBits));
    if (in.left() < count * (b + 1)) return kTruncated;
    const int64_t error = read(in, b, count, bounds[p], numel, indices + *found);
    if (error != 0) return error;
    *found += count;
  }
  const int64_t bytes = bytes_for(in.position());
  if (in.take(static_cast<int>(8 * bytes - in.position())) != 0) return kDirtyPadding;
  return bytes;
}

}  // namespace ddp_compress
