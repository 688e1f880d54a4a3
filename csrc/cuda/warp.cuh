// What the lanes of a warp find together. All of them come here.
#pragma once

#include "launch.cuh"

namespace ddp_compress::cuda {

template <typename T>
__device__ T plus(T a, T b) {
  return a + b;
}

template <typename T>
__device__ T smaller(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
__device__ T larger(T a, T b) {
  return a < b ? b : a;
}

// The values of all lanes together, in every lane; their order must not matter.
template <typename T, typename Combine>
__device__ T combine_lanes(T value, Combine combine) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, lanes));
  return value;
}

// The sum of the lanes up to this one.
template <typename T>
__device__ T sum_up_to_lane(T value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const T other = __shfl_up_sync(kAllLanes, value, delta);
    if (lane >= delta) value += other;
  }
  return value;
}

}  // namespace ddp_compress::cuda
