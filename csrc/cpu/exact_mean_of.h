// The exact mean of neighbours, compiled into its caller: with the caller's registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../exact_mean.h"
#include "simd.h"

namespace ddp_compress {

// Of the magnitudes, where these are asked for.
template <typename A>
DDP_COMPRESS_INLINE double exact_mean_of(const A* values, int64_t count, bool magnitudes) {
  Magnitude<A> largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, magnitude(values[i]));
  const ExactMean<A> scale(largest);
  const Magnitude<A> mask = magnitudes ? kMagnitude<A> : -1;
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += scale.term(__builtin_bit_cast(A, __builtin_bit_cast(Magnitude<A>, values[i]) & mask));
  return scale.mean(sum, count);
}

}  // namespace ddp_compress
