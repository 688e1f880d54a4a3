#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../exact_mean.h"
#include "search.cuh"
#include "several.cuh"
#include "warp.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kEach = 32;             // elements of a tile that one lane has
constexpr int kTile = kEach * kWarp;  // elements that a warp takes at once
constexpr int kTiles = 4;             // tiles a warp: it looks for its segment once

// The first of everything in a segment; behind the last segment come the ends. Every block is cut
// into tiles of its own.
struct Segment {
  int64_t value, byte, scale, tile;
};

struct Table {
  const Segment* segments;
  int64_t count, block, tiles_per_block;

  __device__ int64_t tiles() const { return segments[count].tile; }

  // The last segment that begins at a tile or before.
  __device__ int64_t segment_of(int64_t tile) const {
    return last_up_to(tile, int64_t{0}, count, [&](int64_t s) { return segments[s].tile; });
  }
};

struct Tile {
  int64_t value, byte, scale;
  int count;

  __device__ Tile(const Table& table, int64_t segment, int64_t tile) {
    const Segment &here = table.segments[segment], &next = table.segments[segment + 1];
    const int64_t block = (tile - here.tile) / table.tiles_per_block;
    const int64_t first = block * table.block + (tile - here.tile) % table.tiles_per_block * kTile;
    const int64_t block_end = (block + 1) * table.block, segment_end = next.value - here.value;
    const int64_t left = (block_end < segment_end ? block_end : segment_end) - first;
    value = here.value + first;
    byte = here.byte + first / 8;
    scale = here.scale + block;
    count = static_cast<int>(left < kTile ? left : kTile);
  }
};

template <typename Do>
__device__ void for_each_tile(const Table& table, Do each) {
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int64_t first = warp * kTiles, all = table.tiles();
  int64_t segment = table.segment_of(first);
  for (int64_t tile = first; tile < first + kTiles && tile < all; ++tile) {
    while (table.segments[segment + 1].tile <= tile) ++segment;
    each(Tile(table, segment, tile));
  }
}

// Bit i is the sign of element i.
template <typename A>
__device__ void write_signs(const A (&mine)[kEach], int count, uint8_t* bits) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int byte = 0; byte < kTile / 8; byte += kWarp) {  // the 32 bytes of 8 rows of elements
    unsigned word = 0;
#pragma unroll
    for (int row = 0; row < 8; ++row) {
      const A value = mine[byte / 4 + row];
      const unsigned signs = __ballot_sync(kAllLanes, __builtin_bit_cast(Magnitude<A>, value) < 0);
      if (lane / 4 == row) word = signs;
    }
    const int at = byte + lane;
    if (at * 8 < count) bits[at] = static_cast<uint8_t>(word >> lane % 4 * 8);
  }
}

// The mean magnitude, in every lane.
template <typename A>
__device__ double mean_magnitude(const A (&mine)[kEach], int count) {
  Magnitude<A> largest = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (magnitude(mine[i]) > largest) largest = magnitude(mine[i]);
  largest = combine_lanes(largest, larger<Magnitude<A>>);
  const ExactMean<A> scale(largest);
  uint64_t sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) sum += scale.term(fabs(mine[i]));
  return scale.mean(combine_lanes(sum, plus<uint64_t>), count);
}

// Signs; and the scales, if every block is one tile.
template <bool kScales, typename A>
__global__ void encode(const A* values, Table table, uint8_t* bits, float* scales) {
  const int lane = threadIdx.x % kWarp;
  for_each_tile(table, [&](const Tile& tile) {
    A mine[kEach];  // all of them on the way at once
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = i * kWarp + lane;
      mine[i] = at < tile.count ? values[tile.value + at] : A(0);
    }
    write_signs(mine, tile.count, bits + tile.byte);
    if constexpr (kScales) {
      const double mean = mean_magnitude(mine, tile.count);
      if (lane == 0) scales[tile.scale] = static_cast<float>(mean);
    }
  });
}

__global__ void decode(const uint8_t* __restrict__ bits, const float* __restrict__ scales,
                       Table table, float* __restrict__ values) {
  const int lane = threadIdx.x % kWarp;
  for_each_tile(table, [&](const Tile& tile) {
    const unsigned scale = __float_as_uint(scales[tile.scale]);
    unsigned mine[kEach];  // all of them on the way at once
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = i * kWarp + lane;
      mine[i] = at < tile.count ? bits[tile.byte + at / 8] : 0;
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = i * kWarp + lane;
      const unsigned sign = mine[i] >> at % 8 << 31;
      if (at < tile.count) values[tile.value + at] = __uint_as_float(scale ^ sign);
    }
  });
}

// Sums stay in registers for all ranks.
template <typename G, typename A>
__global__ void add(G* __restrict__ out, Several<SignList> ranks, Table table, A scale,
                    bool afresh) {
  constexpr int kTop = 8 * sizeof(A) - 1;
  const int lane = threadIdx.x % kWarp;
  for_each_tile(table, [&](const Tile& tile) {
    A sums[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = i * kWarp + lane;
      sums[i] = !afresh && at < tile.count ? static_cast<A>(out[tile.value + at]) : A(0);
    }
    for (int64_t rank = 0; rank < ranks.count; ++rank) {
      const A number = static_cast<A>(ranks[rank].scales[tile.scale]) * scale;
      const auto positive = __builtin_bit_cast(Magnitude<A>, number);
      const uint8_t* const bits = ranks[rank].bits + tile.byte;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int at = i * kWarp + lane;
        const auto byte = static_cast<Magnitude<A>>(at < tile.count ? bits[at / 8] : 0);
        sums[i] += __builtin_bit_cast(A, positive ^ (byte >> at % 8) << kTop);
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = i * kWarp + lane;
      if (at < tile.count) out[tile.value + at] = static_cast<G>(sums[i]);
    }
  });
}

// A message of signs, cut into blocks and tiles.
class Signs {
 public:
  Signs(const int64_t* bounds, int64_t segments, int64_t block)
      : block_(std::min(block, bounds[segments] / 8 * 8 + 8)) {  // no longer than what there is
    Segment next{};
    for (int64_t s = 0; s < segments; ++s) {
      table_.push_back(next);
      const int64_t numel = bounds[s + 1] - bounds[s];
      next.value += numel;
      next.byte += ceil_div(numel, 8);
      next.scale += ceil_div(numel, block_);
      next.tile += numel / block_ * tiles_per_block() + ceil_div(numel % block_, kTile);
    }
    table_.push_back(next);
  }

  bool block_is_a_tile() const { return block_ <= kTile; }
  int64_t numel() const { return table_.back().value; }
  int64_t scales() const { return table_.back().scale; }
  int64_t cuda_blocks() const { return ceil_div(table_.back().tile, kTiles * kWarps); }

  Table table(const Device& device) const {
    return {upload(device, table_), static_cast<int64_t>(table_.size()) - 1, block_,
            tiles_per_block()};
  }

  // Elements of every block.
  std::vector<int64_t> counts() const {
    std::vector<int64_t> counts;
    for (size_t s = 0; s + 1 < table_.size(); ++s)
      for (int64_t left = table_[s + 1].value - table_[s].value; left > 0; left -= block_)
        counts.push_back(std::min(block_, left));
    return counts;
  }

 private:
  int64_t tiles_per_block() const { return ceil_div(block_, kTile); }

  int64_t block_;
  std::vector<Segment> table_;
};

}  // namespace

template <typename A>
void sign_encode(const Device& device, const A* values, const int64_t* host_bounds,
                 int64_t segments, int64_t block, uint8_t* bits, float* scales) {
  const Signs signs(host_bounds, segments, block);
  if (signs.numel() == 0) return;
  launch(device, signs.cuda_blocks(), kThreads,
         signs.block_is_a_tile() ? encode<true, A> : encode<false, A>, values, signs.table(device),
         bits, scales);
  if (!signs.block_is_a_tile())
    segment_means(device, values, signs.numel(), upload(device, signs.counts()), signs.scales(),
                  scales, true);
}

void sign_decode(const Device& device, const uint8_t* bits, const float* scales,
                 const int64_t* host_bounds, int64_t segments, int64_t block, float* values) {
  const Signs signs(host_bounds, segments, block);
  if (signs.numel() == 0) return;
  launch(device, signs.cuda_blocks(), kThreads, decode, bits, scales, signs.table(device), values);
}

template <typename G, typename A>
void sign_add(const Device& device, G* out, const std::vector<SignList>& ranks,
              const int64_t* host_bounds, int64_t segments, int64_t block, A scale, bool afresh) {
  const Signs signs(host_bounds, segments, block);
  if (signs.numel() == 0) return;
  launch(device, signs.cuda_blocks(), kThreads, add<G, A>, out, several(device, ranks),
         signs.table(device), scale, afresh);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using Lists = std::vector<SignList>;
template void sign_add(const Device&, float*, const Lists&, const int64_t*, int64_t, int64_t, float,
                       bool);
template void sign_add(const Device&, BFloat16*, const Lists&, const int64_t*, int64_t, int64_t,
                       float, bool);
template void sign_add(const Device&, Half*, const Lists&, const int64_t*, int64_t, int64_t, float,
                       bool);
template void sign_add(const Device&, double*, const Lists&, const int64_t*, int64_t, int64_t,
                       double, bool);

template void sign_encode(const Device&, const float*, const int64_t*, int64_t, int64_t, uint8_t*,
                          float*);
template void sign_encode(const Device&, const double*, const int64_t*, int64_t, int64_t, uint8_t*,
                          float*);

}  // namespace ddp_compress::cuda
