#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "pack.cuh"
#include "search.cuh"
#include "several.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;

// A block owns a tile of positions, so ranks are added in order without waiting for other blocks.
// Sums of fp32 and fp64 stand in `out` itself, and what has no entries is not touched unless all is
// written afresh. Those of half types stand in shared memory, in fp32, until all ranks are in.
// There a tile is read and written whole: 4 bytes an element, in wide words, and no search for what
// was touched.
template <typename G, typename A>
constexpr bool kWide = !std::is_same_v<G, A>;
template <typename G, typename A>
constexpr int64_t kTile = kWide<G, A> ? 8192 : 16384;

template <typename A>
using Ranks = Several<Entries<A>>;

// The first entry at or above a position.
template <typename A>
__device__ int64_t first_entry(const Entries<A>& entries, int64_t position) {
  return first_from(position, int64_t{0}, entries.count,
                    [&](int64_t i) { return entries.indices[i]; });
}

// Adds one rank's entries from `first` on, as long as they lie within [begin, end), to `sums`. A
// position comes once, so threads do not meet.
template <typename A>
__device__ void add_rank(A* sums, int64_t begin, int64_t end, Entries<A> entries, int64_t first,
                         A scale) {
  for (int64_t i = first + threadIdx.x; i < entries.count; i += kThreads) {
    const int64_t position = entries.indices[i];
    if (position >= end) return;
    if (position >= begin) sums[position - begin] += entries.values[i] * scale;
  }
}

// Adds all ranks' entries, rank after rank; first and last, threads wait for each other.
template <typename A>
__device__ void add_tile(A* sums, int64_t begin, int64_t end, const Ranks<A>& ranks, A scale) {
  __shared__ int64_t firsts[kThreads];
  for (int64_t rank = 0; rank < ranks.count; ++rank) {
    const int64_t one_of = rank % kThreads;
    if (one_of == 0) {  // threads search for a rank each
      if (rank + threadIdx.x < ranks.count)
        firsts[threadIdx.x] = first_entry(ranks[rank + threadIdx.x], begin);
      __syncthreads();
    }
    add_rank(sums, begin, end, ranks[rank], firsts[one_of], scale);
    __syncthreads();
  }
}

template <int kPack, typename From, typename To>
__device__ void convert(From* from, To* to, int count) {
  const int packs = count / kPack;
#pragma unroll 4
  for (int p = threadIdx.x; p < packs; p += kThreads) {
    const Pack<From, kPack> read = pack<kPack>(from + p * kPack);
    Pack<To, kPack> written;
    for (int i = 0; i < kPack; ++i) written.at[i] = static_cast<To>(read.at[i]);
    pack<kPack>(to + p * kPack) = written;
  }
  const int i = packs * kPack + threadIdx.x;
  if (i < count) to[i] = static_cast<To>(from[i]);
}

template <typename T>
__device__ void clear(T* tile, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += kThreads) tile[i] = T(0);
  __syncthreads();
}

template <int kPack, typename G, typename A>
__global__ void add_entries(G* out, int64_t start, int64_t numel, Ranks<A> ranks, A scale,
                            bool afresh) {
  constexpr int64_t kMost = kTile<G, A>;
  const int64_t first = blockIdx.x * kMost;
  const int64_t count = numel - first < kMost ? numel - first : kMost;
  const int64_t begin = start + first, end = begin + count;
  G* const tile = out + first;
  if constexpr (kWide<G, A>) {
    alignas(16) __shared__ A sums[kMost];
    if (afresh)
      clear(sums, count);
    else
      convert<kPack>(tile, sums, static_cast<int>(count));
    add_tile(sums, begin, end, ranks, scale);
    convert<kPack>(sums, tile, static_cast<int>(count));
  } else {
    if (afresh) clear(tile, count);
    add_tile(tile, begin, end, ranks, scale);
  }
}

}  // namespace

template <typename G, typename A>
void scatter_add(const Device& device, G* out, int64_t start, int64_t numel,
                 const std::vector<Entries<A>>& ranks, A scale, bool afresh) {
  if (ranks.empty() && !afresh) return;
  constexpr int kPack = kWide<G, A> ? 16 / sizeof(G) : 1;
  launch(device, ceil_div(numel, kTile<G, A>), kThreads,
         is_aligned(out) ? add_entries<kPack, G, A> : add_entries<1, G, A>, out, start, numel,
         several(device, ranks), scale, afresh);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
template void scatter_add(const Device&, float*, int64_t, int64_t,
                          const std::vector<Entries<float>>&, float, bool);
template void scatter_add(const Device&, BFloat16*, int64_t, int64_t,
                          const std::vector<Entries<float>>&, float, bool);
template void scatter_add(const Device&, Half*, int64_t, int64_t,
                          const std::vector<Entries<float>>&, float, bool);
template void scatter_add(const Device&, double*, int64_t, int64_t,
                          const std::vector<Entries<double>>&, double, bool);

}  // namespace ddp_compress::cuda
