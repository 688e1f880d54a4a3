#include "../exact_mean.h"
#include "grid.cuh"
#include "search.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kEach = 8;  // values that a thread has at once

using Sum = unsigned long long;  // what CUDA adds atomically

// What is found of a segment. Both are integers: their order does not matter.
struct Found {
  Sum largest;  // magnitude
  Sum sum;      // of its values as integers
};

// One block: all that must be there before others start. Offsets ascend and stay within `most`,
// whatever the counts are.
__global__ void __launch_bounds__(kThreads)
    prepare(const int64_t* counts, int64_t segments, int64_t most, int64_t* offsets, Found* found,
            Turns::Counters* turns) {
  int64_t begin = 0;
  if (threadIdx.x == 0) {
    offsets[0] = 0;
    *turns = {};
  }
  for (int64_t first = 0; first < segments; first += kThreads) {
    const int64_t s = first + threadIdx.x;
    int64_t count = s < segments && counts[s] > 0 ? counts[s] : 0;
    if (count > most) count = most;
    int64_t all;
    const int64_t end = begin + exclusive_sum<kThreads>(count, all) + count;
    if (s < segments) {
      offsets[s + 1] = end < most ? end : most;
      found[s] = {};
    }
    begin += all;
  }
}

// Calls part(segment, begin, end) for what lies in this warp's part of a share of the values.
template <typename Part>
__device__ void for_each_part(unsigned share, const int64_t* offsets, int64_t segments, Part part) {
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  const int64_t warp = int64_t{share} * kWarps + threadIdx.x / kWarp;
  const int64_t count = offsets[segments];
  int64_t begin = count * warp / warps;
  const int64_t end = count * (warp + 1) / warps;
  int64_t segment = last_up_to(begin, int64_t{0}, segments, [&](int64_t s) { return offsets[s]; });
  for (; begin < end; ++segment) {
    const int64_t here = offsets[segment + 1] < end ? offsets[segment + 1] : end;
    if (begin < here) part(segment, begin, here);
    begin = here;
  }
}

// Calls each(value) for a lane's part of [begin, end), and for zeros: they change no largest
// magnitude and no sum.
template <typename A, typename Each>
__device__ void for_each_value(const A* values, int64_t begin, int64_t end, Each each) {
  for (int64_t first = begin + threadIdx.x % kWarp; first < end; first += kWarp * kEach) {
    A mine[kEach];  // all of them on the way at once
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t at = first + i * kWarp;
      mine[i] = at < end ? values[at] : A(0);
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) each(mine[i]);
  }
}

template <bool kMagnitudes, typename A>
__global__ void __launch_bounds__(kThreads)
    find_means(Turns::Counters* counters, const A* values, const int64_t* offsets, int64_t segments,
               Found* found, float* means) {
  const int lane = threadIdx.x % kWarp;
  Turns turns(counters);
  turns.all([&](unsigned share) {
    for_each_part(share, offsets, segments, [&](int64_t segment, int64_t begin, int64_t end) {
      Magnitude<A> largest = 0;
      for_each_value(values, begin, end, [&](A value) {
        if (magnitude(value) > largest) largest = magnitude(value);
      });
      largest = combine_lanes(largest, larger<Magnitude<A>>);
      if (lane == 0) atomicMax(&found[segment].largest, static_cast<Sum>(largest));
    });
  });
  turns.all([&](unsigned share) {
    for_each_part(share, offsets, segments, [&](int64_t segment, int64_t begin, int64_t end) {
      const ExactMean<A> scale(static_cast<Magnitude<A>>(found[segment].largest));
      Sum sum = 0;
      for_each_value(values, begin, end,
                     [&](A value) { sum += scale.term(kMagnitudes ? fabs(value) : value); });
      sum = combine_lanes(sum, plus<Sum>);
      if (lane == 0) atomicAdd(&found[segment].sum, sum);
    });
  });
  turns.last([&](unsigned share) {
    const Share own(segments, share);
    for (int64_t s = own.begin + threadIdx.x; s < own.end; s += kThreads) {
      const ExactMean<A> scale(static_cast<Magnitude<A>>(found[s].largest));
      means[s] = static_cast<float>(scale.mean(found[s].sum, offsets[s + 1] - offsets[s]));
    }
  });
}

}  // namespace

template <typename A>
void segment_means(const Device& device, const A* values, int64_t count, const int64_t* counts,
                   int64_t segments, float* means, bool magnitudes) {
  if (segments == 0) return;
  auto* offsets = device.array<int64_t>(segments + 1);
  auto* found = device.array<Found>(segments);
  auto* turns = device.array<Turns::Counters>(1);
  launch(device, 1, kThreads, prepare, counts, segments, count, offsets, found, turns);
  launch_in_turns(device, ceil_div(count, kThreads * kEach), kThreads,
                  magnitudes ? find_means<true, A> : find_means<false, A>, turns, values, offsets,
                  segments, found, means);
}

template void segment_means(const Device&, const float*, int64_t, const int64_t*, int64_t, float*,
                            bool);
template void segment_means(const Device&, const double*, int64_t, const int64_t*, int64_t, float*,
                            bool);

}  // namespace ddp_compress::cuda
