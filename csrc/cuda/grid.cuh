// What threads of a block, and blocks of a grid, do together.
#pragma once

#include <cooperative_groups.h>

#include "warp.cuh"

namespace ddp_compress::cuda {

// A barrier for all blocks of a kernel that `launch_together` runs. Every thread of every block
// comes here; what they wrote before, all see afterwards.
__device__ inline void wait_for_grid() { cooperative_groups::this_grid().sync(); }

// [begin, end) of `count` things for this block: neighbours, so that blocks are in order.
struct Share {
  int64_t begin, end;

  __device__ explicit Share(int64_t count)
      : begin(count * blockIdx.x / gridDim.x), end(count * (blockIdx.x + 1) / gridDim.x) {}
};

// The sum of all threads' values before this thread's own; `total` gets the sum of all.
template <int kThreads, typename T>
__device__ T exclusive_sum(T value, T& total) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ T sums[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const T inclusive = sum_up_to_lane(value);
  if (lane == kWarp - 1) sums[warp] = inclusive;
  __syncthreads();
  T before = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) before = total;
    total += sums[w];
  }
  __syncthreads();  // before the next call writes
  return before + inclusive - value;
}

// The same of all threads' values together.
template <int kThreads, typename T, typename Combine>
__device__ T reduce(T value, Combine combine) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ T parts[kWarps];
  value = combine_lanes(value, combine);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = parts[0];
  for (int w = 1; w < kWarps; ++w) value = combine(value, parts[w]);
  __syncthreads();
  return value;
}

template <int kThreads, typename T>
__device__ T sum_of_block(T value) {
  return reduce<kThreads>(value, plus<T>);
}

}  // namespace ddp_compress::cuda
