// What threads of a block, and blocks of a grid, do together.
#pragma once

#include "warp.cuh"

namespace ddp_compress::cuda {

// Waits for what another block writes, and returns it as soon as good(it).
template <typename Good>
__device__ unsigned wait_for(const volatile unsigned& word, Good good) {
  unsigned read = word;
  for (; !good(read); read = word) __nanosleep(20);
  return read;
}

// The phases of a kernel that `launch_in_turns` runs. A phase has as many shares as the grid has
// blocks. Blocks draw tickets for them, in order, and a phase begins when the one before is done:
// what was written until then, all see.
//
// Blocks need not run at once. Who waits for a phase to be done holds a ticket of a later one, so
// all of this phase are drawn, by blocks that run. None of these waits for the phase while it holds
// an undone share of it: so where nobody waits for an earlier phase, every share is worked on. Thus
// any number of blocks, even one, comes to the end of all phases. For the same reason a share may
// wait for earlier ones of its phase.
//
// A block that starts late finds every share taken and passes through. It sees what later phases
// have written: what decides which phase comes next must not change once the one before is over.
class Turns {
 public:
  struct Counters {  // zero before the kernel starts
    unsigned drawn, done;
  };

  __device__ explicit Turns(Counters* counters) : counters_(counters) { draw(); }

  // Every thread of every block comes here. Calls f(share) for the shares that fall to this block,
  // and returns when all of the phase are done.
  template <typename F>
  __device__ void all(F f) {
    last(f);
    if (threadIdx.x == 0) {
      wait_for(counters_->done, [&](unsigned done) { return done >= end_; });
      __threadfence();
    }
    __syncthreads();
  }

  // The same for the last phase, after which nobody waits.
  template <typename F>
  __device__ void last(F f) {
    const unsigned begin = end_;
    end_ += gridDim.x;
    while (ticket_ < end_) {
      f(ticket_ - begin);
      __syncthreads();
      if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(&counters_->done, 1u);
      }
      draw();
    }
  }

 private:
  __device__ void draw() {
    __shared__ unsigned drawn;
    if (threadIdx.x == 0) drawn = atomicAdd(&counters_->drawn, 1u);
    __syncthreads();
    ticket_ = drawn;
  }

  Counters* const counters_;
  unsigned ticket_, end_ = 0;  // the end of this phase's tickets
};

// [begin, end) of `count` things: neighbours, so that shares are in order.
struct Share {
  int64_t begin, end;

  __device__ explicit Share(int64_t count, unsigned share = blockIdx.x)
      : begin(count * share / gridDim.x), end(count * (share + 1) / gridDim.x) {}
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
