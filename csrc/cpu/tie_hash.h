// A seeded hash of a place: what breaks ties, and what random selection draws.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ddp_compress {

// The top bits of splitmix64's finalizer. `offset` is linear in what is mixed: a slice of a
// parameter hashes like the whole once its salt is moved by the first constant.
inline uint32_t tie_hash(uint64_t salt, uint64_t offset, uint64_t draw) {
  uint64_t z = salt + 0x9E3779B97F4A7C15 * offset + 0xD1B54A32D192ED03 * draw;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
}

// Where ascending positions lie: their parameter's salt, and their offset in it.
class Places {
 public:
  Places(const int64_t* bounds, const int64_t* salts, int64_t params, int64_t first)
      : end_(std::upper_bound(bounds, bounds + params, first)),
        salt_(salts + (end_ - bounds) - 1) {}

  uint32_t hash(int64_t position, uint64_t draw) {
    for (; position >= *end_; ++end_) ++salt_;
    return tie_hash(static_cast<uint64_t>(*salt_), static_cast<uint64_t>(position - end_[-1]),
                    draw);
  }

 private:
  const int64_t* end_;  // the parameter's, within bounds
  const int64_t* salt_;
};

}  // namespace ddp_compress
