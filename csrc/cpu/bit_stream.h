// Bit fields in the order of wire_format.h, moved a 64-bit word at a time.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "../wire_format.h"

namespace ddp_compress {

// A word whose lowest `bits` bits are set; bits < 64.
inline uint64_t low_mask(int64_t bits) { return (uint64_t{1} << bits) - 1; }

inline int64_t bytes_for(int64_t bits) { return (bits + 7) / 8; }

// Writes exactly the bytes that the bits put into it need; `out` must hold as many.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* out) : out_(out) {}

  // Appends the lowest `bits` < 64 bits of value; all above them must be zero.
  void put(uint64_t value, int bits) {
    word_ |= value << filled_;
    filled_ += bits;
    if (filled_ < 64) return;
    std::memcpy(out_, &word_, 8);
    out_ += 8;
    filled_ -= 64;
    word_ = value >> (bits - filled_);
  }

  void repeat(bool bit, int64_t count) {
    const uint64_t ones = bit ? ~uint64_t{0} : 0;
    for (; count > 63; count -= 63) put(ones & low_mask(63), 63);
    put(ones & low_mask(count), static_cast<int>(count));
  }

  void finish() {
    if (filled_ > 0) std::memcpy(out_, &word_, static_cast<size_t>(bytes_for(filled_)));
  }

 private:
  uint8_t* out_;
  uint64_t word_ = 0;
  int filled_ = 0;
};

// Never touches memory outside `data`: past its end there are only zeros, and left() is negative.
class BitReader {
 public:
  static constexpr int kPeek = 57;  // bits that a word holds from any bit of its first byte on

  BitReader(const uint8_t* data, int64_t size) : data_(data), size_(size) {}

  int64_t position() const { return position_; }
  int64_t left() const { return 8 * size_ - position_; }
  void skip(int64_t bits) { position_ += bits; }

  // 64 bits from a byte on.
  uint64_t word_at(int64_t byte) const {
    if (byte + 8 <= size_) return load_u64(data_ + byte);
    uint64_t word = 0;
    if (byte < size_) std::memcpy(&word, data_ + byte, static_cast<size_t>(size_ - byte));
    return word;
  }

  // At least kPeek bits from a bit on.
  uint64_t bits_at(int64_t bit) const { return word_at(bit >> 3) >> (bit & 7); }
  uint64_t peek() const { return bits_at(position_); }

  uint64_t take(int bits) {
    const uint64_t value = peek() & low_mask(bits);
    skip(bits);
    return value;
  }

  // Reads ones up to a zero, and the zero; returns how many ones.
  int64_t take_unary() {
    constexpr int kStep = kPeek - 1;
    int64_t ones = 0;
    int run;
    do {
      run = std::min(std::countr_one(peek()), kStep);
      ones += run;
      skip(run);
    } while (run == kStep);
    skip(1);
    return ones;
  }

 private:
  const uint8_t* data_;
  int64_t size_;
  int64_t position_ = 0;
};

}  // namespace ddp_compress
