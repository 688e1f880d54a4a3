// What a message's checksum is a sum of: in any order, so that a GPU finds the same number.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ddp_compress {

// A bijection of 32-bit words (the finalizer of MurmurHash3): a changed word always changes its
// term, so every flip confined to one word is caught, others with probability 1 - 2^-32.
DDP_COMPRESS_HD inline uint32_t mix(uint32_t h) {
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  h ^= h >> 16;
  return h;
}

// The term of the i-th word.
DDP_COMPRESS_HD inline uint32_t mix_word(uint32_t word, int64_t i) {
  return mix(word ^ (static_cast<uint32_t>(i + 1) * 0x9E3779B9u));
}

}  // namespace ddp_compress
