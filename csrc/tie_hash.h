// A seeded hash of a place: what breaks ties, and what random selection, signs and rounding draw.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ddp_compress {

// splitmix64's finalizer. `offset` is linear in what is mixed: a slice of a parameter hashes like
// the whole once its salt is moved by the first constant.
DDP_COMPRESS_HD inline uint64_t random_word(uint64_t salt, uint64_t offset, uint64_t draw = 0) {
  uint64_t z = salt + 0x9E3779B97F4A7C15 * offset + 0xD1B54A32D192ED03 * draw;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

DDP_COMPRESS_HD inline uint32_t tie_hash(uint64_t salt, uint64_t offset, uint64_t draw) {
  return static_cast<uint32_t>(random_word(salt, offset, draw) >> 32);
}

}  // namespace ddp_compress
