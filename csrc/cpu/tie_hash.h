// The hash of places that come in ascending order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../tie_hash.h"
#include "simd.h"

namespace ddp_compress {

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

// The hashes of places, which at(i) counts from the beginning of their parameter.
template <typename At>
DDP_COMPRESS_INLINE void hash_each(At at, int64_t count, uint64_t salt, uint32_t* hashes) {
  for (int64_t i = 0; i < count; ++i) hashes[i] = tie_hash(salt, static_cast<uint64_t>(at(i)), 0);
}

// Those of ascending positions that lie in one parameter, which begins at `start`.
inline void hash_portable(const int32_t* positions, int64_t count, int64_t start, uint64_t salt,
                          uint32_t* hashes) {
  hash_each([=](int64_t i) { return positions[i] - start; }, count, salt, hashes);
}

#ifdef DDP_COMPRESS_AVX2
DDP_COMPRESS_TARGET_AVX512 inline void hash_avx512(const int32_t* positions, int64_t count,
                                                   int64_t start, uint64_t salt, uint32_t* hashes) {
  hash_each([=](int64_t i) { return positions[i] - start; }, count, salt, hashes);
}

// The hashes of neighbours, a salt for each parameter.
DDP_COMPRESS_TARGET_AVX512 inline void hash_range_avx512(int64_t first, int64_t count,
                                                         const int64_t* bounds,
                                                         const int64_t* salts, int64_t params,
                                                         uint32_t* hashes) {
  for (const int64_t end = first + count; first < end;) {
    const int64_t p = std::upper_bound(bounds, bounds + params, first) - bounds - 1;
    const int64_t here = std::min(end, bounds[p + 1]) - first, offset = first - bounds[p];
    hash_each([=](int64_t i) { return offset + i; }, here, static_cast<uint64_t>(salts[p]), hashes);
    hashes += here;
    first += here;
  }
}
#endif

// The hashes of ascending positions, a salt for each parameter.
inline void hash_places(const int32_t* positions, int64_t count, const int64_t* bounds,
                        const int64_t* salts, int64_t params, uint32_t* hashes) {
  auto each = hash_portable;
#ifdef DDP_COMPRESS_AVX2
  if (use_avx512()) each = hash_avx512;
#endif
  const int32_t* const end = positions + count;
  while (positions < end) {
    const int64_t p = std::upper_bound(bounds, bounds + params, *positions) - bounds - 1;
    const int32_t* const next = std::lower_bound(positions, end, bounds[p + 1]);
    each(positions, next - positions, bounds[p], static_cast<uint64_t>(salts[p]), hashes);
    hashes += next - positions;
    positions = next;
  }
}

}  // namespace ddp_compress
