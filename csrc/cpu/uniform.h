// A block's coefficients as codes of evenly spaced levels, a tile of them at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../uniform.h"
#include "../wire_format.h"
#include "simd.h"

namespace ddp_compress {

constexpr int64_t kTile = 64;  // codes: whole bytes, whatever a code's bits

// Eight codes a word: in a byte each, or as neighbours of so many bits, the first one lowest.
class Packing {
 public:
  explicit Packing(int bits)
      : bits_(bits),
        one_(low(bits) * 0x0001000100010001),
        two_(low(2 * bits) * 0x0000000100000001),
        four_(low(4 * bits)) {}

  // Bytes become neighbours: one and one, two and two, four and four.
  uint64_t joined(uint64_t codes) const {
    codes = (codes & one_) | (codes >> (8 - bits_) & one_ << bits_);
    codes = (codes & two_) | (codes >> (16 - 2 * bits_) & two_ << 2 * bits_);
    return (codes & four_) | (codes >> (32 - 4 * bits_) & four_ << 4 * bits_);
  }

  // The way back; bits above those of eight codes are not looked at.
  uint64_t parted(uint64_t codes) const {
    codes = (codes & four_) | (codes & four_ << 4 * bits_) << (32 - 4 * bits_);
    codes = (codes & two_) | (codes & two_ << 2 * bits_) << (16 - 2 * bits_);
    return (codes & one_) | (codes & one_ << bits_) << (8 - bits_);
  }

 private:
  static uint64_t low(int bits) { return (uint64_t{1} << bits) - 1; }

  int bits_;
  uint64_t one_, two_, four_;  // the first of two neighbours
};

DDP_COMPRESS_INLINE Levels levels_of(const float* values, int64_t count, int last) {
  int32_t smallest = INT32_MAX, largest = INT32_MIN;
  for (int64_t i = 0; i < count; ++i) {
    smallest = std::min(smallest, ordered(values[i]));
    largest = std::max(largest, ordered(values[i]));
  }
  return levels_between(smallest, largest, last);
}

// The codes of a tile, of whose block it is the `first` / kTile-th.
DDP_COMPRESS_INLINE void codes_of(const float* values, int64_t first, Levels levels, uint64_t salt,
                                  uint64_t number, int last, uint8_t* codes) {
  uint64_t words[kTile / kDraws];
  for (int i = 0; i < kTile / kDraws; ++i)
    words[i] = random_word(salt, static_cast<uint64_t>(first / kDraws + i), number);
  uint16_t draws[kTile];
  std::memcpy(draws, words, sizeof(draws));
  for (int i = 0; i < kTile; ++i)
    codes[i] = static_cast<uint8_t>(code_of(values[i], levels, noise(draws[i]), last));
}

// Writes exactly the bytes that the codes need. What follows the values up to a whole tile is
// overwritten.
DDP_COMPRESS_INLINE Levels quantize(float* values, int64_t count, uint64_t salt, uint64_t number,
                                    int bits, uint8_t* out) {
  const int last = (1 << bits) - 1;
  const Packing packing(bits);
  const Levels levels = levels_of(values, count, last);
  if (!is_step(levels.step)) {
    std::memset(out, 0, static_cast<size_t>((bits * count + 7) / 8));
    return levels;
  }
  for (int64_t i = count; i % kTile != 0; ++i) values[i] = levels.lowest;  // of code 0
  for (int64_t first = 0; first < count; first += kTile) {
    uint8_t codes[kTile], packed[kTile + 8];
    uint64_t words[kTile / 8];
    codes_of(values + first, first, levels, salt, number, last, codes);
    std::memcpy(words, codes, kTile);
    for (uint64_t& word : words) word = packing.joined(word);
    for (int i = 0; i < kTile / 8; ++i) std::memcpy(packed + i * bits, &words[i], 8);
    const int64_t bytes = (bits * std::min(kTile, count - first) + 7) / 8;
    std::memcpy(out, packed, static_cast<size_t>(bytes));
    out += bytes;
  }
  return levels;
}

// The levels of `count` codes, and something up to the end of the tile.
DDP_COMPRESS_INLINE void dequantize(const uint8_t* data, int64_t count, Levels levels, int bits,
                                    float* values) {
  const Packing packing(bits);
  for (int64_t first = 0; first < count; first += kTile) {
    uint8_t packed[kTile + 8] = {}, codes[kTile];
    uint64_t words[kTile / 8];
    const int64_t bytes = (bits * std::min(kTile, count - first) + 7) / 8;
    std::memcpy(packed, data, static_cast<size_t>(bytes));
    data += bytes;
    for (int i = 0; i < kTile / 8; ++i) words[i] = load_u64(packed + i * bits);
    for (uint64_t& word : words) word = packing.parted(word);
    std::memcpy(codes, words, kTile);
    for (int i = 0; i < kTile; ++i)
      values[first + i] = levels.lowest + static_cast<float>(codes[i]) * levels.step;
  }
}

}  // namespace ddp_compress
