#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>

#include "../kernels.h"
#include "bit_stream.h"
#include "scratch.h"
#include "simd.h"

namespace ddp_compress {

namespace {

constexpr int kMaxAlphabet = kMostCells;
constexpr int kTotalBits = 12;
constexpr uint32_t kTotal = 1 << kTotalBits;
constexpr uint32_t kLow = 1 << 23;  // states stay within [kLow, 256 * kLow)
constexpr uint32_t kRare = 16;      // symbols of lower frequencies may move two bytes, others one
constexpr int kMostMoved = 2;
static_assert(kRare * (kLow >> kTotalBits) == kLow >> 8);

using Frequencies = std::array<uint32_t, kMaxAlphabet>;  // 0 where a symbol does not occur

// Frequencies near the symbols' shares of kTotal, in integers alone. Each share is rounded, 1 at
// least, and the most frequent symbol takes the difference. That never uses it up: a share below
// one half gains less than 1 and any other at most one half, less than 65 in all and less than 33
// where all shares are alike, 63 each.
Frequencies normalized(const uint8_t* symbols, int64_t count) {
  // Counted in turns: equal symbols would wait for each other.
  std::array<std::array<int64_t, kMaxAlphabet>, 4> turns{};
  for (int64_t i = 0; i < count; ++i) ++turns[i % 4][symbols[i]];
  std::array<int64_t, kMaxAlphabet> counts{};
  for (const auto& turn : turns)
    for (int s = 0; s < kMaxAlphabet; ++s) counts[s] += turn[s];
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

// What encoding a symbol takes. For states below 2**31, `state / frequency` is exactly
// `state * reciprocal >> shift`: where 2**s is the frequency or more, the reciprocal is
// 2**(31 + s) / frequency, rounded up, which lets the quotient grow by less than 1 / frequency.
struct Symbol {
  uint64_t reciprocal;
  int shift;
  uint32_t frequency, start;
  uint64_t limit;  // low bytes move out while the state is not below it

  Symbol() = default;
  Symbol(uint32_t frequency, uint32_t start)
      : shift(31 + std::bit_width(frequency - 1)),
        frequency(frequency),
        start(start),
        limit(uint64_t{kLow >> kTotalBits << 8} * frequency) {
    reciprocal = ((uint64_t{1} << shift) + frequency - 1) / frequency;
  }
};

// A decoder's table: the frequency of the symbol in every slot, and which of its slots this is.
struct Slots {
  struct Slot {
    uint16_t frequency, offset;
  };
  std::array<Slot, kTotal> slots;
  std::array<uint8_t, kTotal> symbols;

  void fill(const Frequencies& frequencies) {
    size_t start = 0;
    for (int s = 0; s < kMaxAlphabet; start += frequencies[s++]) {
      const auto frequency = static_cast<uint16_t>(frequencies[s]);
      std::fill_n(symbols.begin() + start, frequency, static_cast<uint8_t>(s));
      for (uint16_t offset = 0; offset < frequency; ++offset)
        slots[start + offset] = {frequency, offset};
    }
  }
};

// A message on its way through the decoder. Only what a step needs is kept in registers.
struct Drawn {
  const uint8_t* next;
  const uint8_t* last;  // a step begins at it or before it
};
struct Lane {
  uint32_t state;
  Drawn bytes;
  uint8_t* symbols;
  int64_t* status;  // as long as symbols are read, the size of the message
  bool in_tail, truncated;
  uint8_t tail[2 * kMostMoved];  // the last bytes once more, and zeros behind them
};

// The last bytes are read from where zeros follow them. Whoever comes again has drawn one of these.
Drawn refill(Lane& lane, Drawn bytes) {
  if (lane.in_tail) {
    lane.truncated = true;
  } else {
    const auto left = bytes.last + kMostMoved - bytes.next;
    std::memcpy(lane.tail, bytes.next, static_cast<size_t>(left));
    lane.in_tail = true;
    bytes.last = lane.tail + left;
  }
  return {lane.tail, bytes.last};
}

// Keeps a compiler from working a value out in a branch of its own.
DDP_COMPRESS_INLINE void keep(uint32_t& value) {
#if defined(__GNUC__)
  asm("" : "+r"(value));
#endif
}

DDP_COMPRESS_INLINE uint8_t step(const Slots& table, uint32_t& state, const uint8_t*& next) {
  const uint32_t slot = state % kTotal;
  const uint32_t frequency = table.slots[slot].frequency, offset = table.slots[slot].offset;
  const uint32_t product = frequency * (state >> kTotalBits);
  state = product + offset;
  if (frequency < kRare) [[unlikely]] {
    while (state < kLow) state = state << 8 | *next++;
  } else {
    // One byte or none: nothing foretells it, so both are worked out.
    uint32_t longer = (product << 8) + (offset << 8 | *next);
    keep(longer);
    const bool drawn = state < kLow;
    state = drawn ? longer : state;
    next += drawn;
  }
  return table.symbols[slot];
}

constexpr int64_t kTile = 512;
template <int... J>
void run_tile(Lane* lanes, const Slots* tables, int64_t count, uint8_t tile[][kTile],
              std::integer_sequence<int, J...>) {
  uint32_t state[] = {lanes[J].state...};
  const uint8_t* next[] = {lanes[J].bytes.next...};
  const uint8_t* last[] = {lanes[J].bytes.last...};
  const auto turn = [&](int64_t i, int j) {
    tile[j][i] = step(tables[j], state[j], next[j]);
    if (next[j] > last[j]) [[unlikely]] {
      const Drawn bytes = refill(lanes[j], {next[j], last[j]});
      next[j] = bytes.next;
      last[j] = bytes.last;
    }
  };
  for (int64_t i = 0; i < count; ++i) (turn(i, J), ...);
  ((lanes[J].state = state[J], lanes[J].bytes = {next[J], last[J]}), ...);
}

// Some messages in turns: a step has to wait for the last one of its own message alone.
template <int N>
void run(Lane* lanes, const Slots* tables, int64_t count) {
  uint8_t tile[N][kTile];
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t here = std::min(kTile, count - first);
    run_tile(lanes, tables, here, tile, std::make_integer_sequence<int, N>());
    for (int j = 0; j < N; ++j)
      std::memcpy(lanes[j].symbols + first, tile[j], static_cast<size_t>(here));
  }
}

// Returns whether there is a state to run through symbols. Where there is none, the status is
// known, and so are symbols that are all alike.
bool begin(std::span<const uint8_t> message, int64_t count, int alphabet, uint8_t* symbols,
           int64_t* status, Lane& lane, Slots& table) {
  *status = 0;
  if (count == 0) return false;
  const int64_t size = std::ssize(message);
  Frequencies frequencies{};
  const int64_t head = *status = read_table(message.data(), size, alphabet, frequencies);
  if (head < 0) return false;
  const auto alone = std::find(frequencies.begin(), frequencies.end(), kTotal);
  if (alone != frequencies.end()) {
    std::fill_n(symbols, count, static_cast<uint8_t>(alone - frequencies.begin()));
    return false;
  }
  *status = kTruncated;
  if (size - head < 4) return false;
  lane = {};
  std::memcpy(&lane.state, message.data() + head, 4);
  *status = kBadState;
  if (lane.state < kLow || lane.state >= kLow << 8) return false;
  *status = size;
  lane.status = status;
  lane.symbols = symbols;
  lane.bytes = {message.data() + head + 4, message.data() + size - kMostMoved};
  if (lane.bytes.next > lane.bytes.last) lane.bytes = refill(lane, lane.bytes);
  table.fill(frequencies);
  return true;
}

// Returns how many bytes are left, or a DecodeError.
int64_t end_of(const Lane& lane) {
  if (lane.truncated) return kTruncated;
  if (lane.state != kLow) return kBadState;
  return lane.bytes.last - lane.bytes.next + (lane.in_tail ? 0 : kMostMoved);
}

void run(Lane* lanes, const Slots* tables, int64_t ready, int64_t count) {
  switch (ready) {
    case 1:
      return run<1>(lanes, tables, count);
    case 2:
      return run<2>(lanes, tables, count);
    case 3:
      return run<3>(lanes, tables, count);
    case 4:
      return run<4>(lanes, tables, count);
  }
}

}  // namespace

std::vector<uint8_t> rans_encode(const uint8_t* symbols, int64_t count, int alphabet) {
  if (count == 0) return {};
  const Frequencies frequencies = normalized(symbols, count);
  std::vector<uint8_t> out = write_table(frequencies, alphabet);
  if (one_alone(frequencies)) return out;

  std::array<Symbol, kMaxAlphabet> of;
  uint32_t start = 0;
  for (int s = 0; s < alphabet; start += frequencies[s++])
    if (frequencies[s] > 0) of[s] = Symbol(frequencies[s], start);

  const int64_t room = kMostMoved * count + 4;
  const Scratch<uint8_t> bytes(room);
  uint8_t* const end = bytes.get() + room;
  uint8_t* next = end;
  uint32_t state = kLow;
  // What is written last is read first: from the last symbol to the first, and backwards.
  for (int64_t i = count - 1; i >= 0; --i) {
    const Symbol& symbol = of[symbols[i]];
    if (symbol.frequency < kRare) [[unlikely]] {
      for (; state >= symbol.limit; state >>= 8) *--next = static_cast<uint8_t>(state);
    } else {
      // One byte or none: nothing foretells it.
      next[-1] = static_cast<uint8_t>(state);
      uint32_t shorter = state >> 8;
      keep(shorter);
      const bool moved = state >= symbol.limit;
      state = moved ? shorter : state;
      next -= moved;
    }
    const auto quotient = static_cast<uint32_t>(state * symbol.reciprocal >> symbol.shift);
    state += quotient * (kTotal - symbol.frequency) + symbol.start;
  }
  next -= 4;
  std::memcpy(next, &state, 4);
  out.insert(out.end(), next, end);
  return out;
}

void rans_decode(const std::vector<std::span<const uint8_t>>& messages, int64_t count, int alphabet,
                 uint8_t* symbols, int64_t* status) {
  constexpr int kLanes = 4;  // more of them need more registers and caches than there are
  const Scratch<Slots> tables(kLanes);
  std::array<Lane, kLanes> lanes;
  int64_t ready = 0;
  const auto run_all = [&] {
    run(lanes.data(), tables.get(), ready, count);
    for (int64_t j = 0; j < ready; ++j) {
      const int64_t left = end_of(lanes[j]);
      *lanes[j].status = left < 0 ? left : *lanes[j].status - left;
    }
    ready = 0;
  };
  for (const auto message : messages) {
    if (begin(message, count, alphabet, symbols, status, lanes[ready], tables[ready])) ++ready;
    if (ready == kLanes) run_all();
    symbols += count;
    ++status;
  }
  run_all();
}

}  // namespace ddp_compress
