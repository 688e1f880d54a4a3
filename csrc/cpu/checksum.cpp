#include <cstring>

#include "../kernels.h"

namespace ddp_compress {

namespace {

// A bijection of 32-bit words (the finalizer of MurmurHash3): a changed word always changes its
// term, so every flip confined to one word is caught, others with probability 1 - 2^-32.
inline uint32_t mix(uint32_t h) {
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  h ^= h >> 16;
  return h;
}

constexpr uint32_t kGolden = 0x9E3779B9u;

}  // namespace

// A sum over words in any order, so that a GPU can compute the same number in parallel.
uint32_t checksum(const uint8_t* data, int64_t size) {
  uint32_t sum = mix(static_cast<uint32_t>(size));
  int64_t words = size / 4;
  for (int64_t i = 0; i < words; ++i) {
    uint32_t word;
    std::memcpy(&word, data + 4 * i, 4);
    sum += mix(word ^ (static_cast<uint32_t>(i + 1) * kGolden));
  }
  uint32_t tail = 0;
  if (size % 4) std::memcpy(&tail, data + 4 * words, static_cast<size_t>(size % 4));
  return sum + mix(tail ^ (static_cast<uint32_t>(words + 1) * kGolden));
}

}  // namespace ddp_compress
