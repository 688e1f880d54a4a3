#include "../rotated.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../kernels.h"
#include "exact_mean_of.h"
#include "hadamard.h"
#include "scratch.h"
#include "uniform.h"
#include "write.h"

namespace ddp_compress {
namespace {

using Transform = void(float*, int64_t);
constexpr int64_t kHeld = kSmallestBlock - 1;  // values beside a free place

// A block's numbers, in a near cache.
struct alignas(64) Numbers {
  float of[kLargestBlock];
};

DDP_COMPRESS_INLINE float cut_off(float value) {
  return std::min(std::max(value, -kFarthest), kFarthest);
}

// The values of a block at their places among its coefficients. Free ones are 0.
DDP_COMPRESS_INLINE void place(const float* values, int64_t size, const int64_t* free, float* x) {
  if (!free) {
    for (int64_t i = 0; i < size; ++i) x[i] = cut_off(values[i]);
    return;
  }
  for (float* const end = x + size; x < end; x += kSmallestBlock, values += kHeld) {
    const int64_t gap = *free++;
    for (int64_t i = 0; i < gap; ++i) x[i] = cut_off(values[i]);
    for (int64_t i = gap; i < kHeld; ++i) x[i + 1] = cut_off(values[i]);
    x[gap] = 0;
  }
}

// The way back.
DDP_COMPRESS_INLINE void pick(const float* x, int64_t size, const int64_t* free, float* values) {
  for (const float* const end = x + size; x < end; x += kSmallestBlock, values += kHeld) {
    const int64_t gap = *free++;
    for (int64_t i = 0; i < gap; ++i) values[i] = x[i];
    for (int64_t i = gap; i < kHeld; ++i) values[i] = x[i + 1];
  }
}

template <Transform kTransform>
DDP_COMPRESS_INLINE void turn(const Rotation& rotation, const Block& block, const float* from,
                              float* to) {
  if (!rotation.signs) return void(std::copy_n(from, block.size, to));
  flip(from, block.size, rotation.signs[block.group], block.number, to);
  kTransform(to, block.size);
}

// `from` is overwritten.
template <Transform kTransform>
DDP_COMPRESS_INLINE void turn_back(const Rotation& rotation, const Block& block, float* from,
                                   float* to) {
  if (!rotation.signs) return void(std::copy_n(from, block.size, to));
  kTransform(from, block.size);
  flip(from, block.size, rotation.signs[block.group], block.number, to);
}

// Adds to `total` what is left of the coefficients of `rest` once they are cut off, and takes it
// out of `rest`.
template <Transform kTransform>
DDP_COMPRESS_INLINE void iterate(const Rotation& rotation, const Block& block, float* rest,
                                 float* x, float* total) {
  turn<kTransform>(rotation, block, rest, x);
  const float limit = kDeviation * static_cast<float>(exact_mean_of(x, block.size, true));
  for (int64_t i = 0; i < block.size; ++i) {
    x[i] = std::max(std::min(limit, x[i]), -limit);
    total[i] += x[i];
  }
  turn_back<kTransform>(rotation, block, x, x);
  for (int64_t i = 0; i < block.size; ++i) rest[i] -= x[i];
  for (int64_t i = 0; rotation.free && i < block.size; i += kSmallestBlock)
    rest[i + rotation.free[i / kSmallestBlock]] = 0;
}

// The coefficients of a block's values.
template <Transform kTransform>
DDP_COMPRESS_INLINE void coefficients_of(const float* values, const Rotation& rotation,
                                         const Block& block, int64_t iterations, float* x,
                                         float* rest, float* total) {
  place(values, block.size, rotation.free, rest);
  if (iterations > 1) std::fill_n(total, block.size, 0.0f);
  for (int64_t i = 1; i < iterations; ++i) iterate<kTransform>(rotation, block, rest, x, total);
  turn<kTransform>(rotation, block, rest, x);
  for (int64_t i = 0; iterations > 1 && i < block.size; ++i) x[i] = total[i] + x[i];
}

template <Transform kTransform>
DDP_COMPRESS_INLINE void encode(const float* values, const Rotation& rotation, const Block& block,
                                const uint16_t* sent, const Drawn& drawn, uint8_t* codes,
                                Levels& levels) {
  const Scratch<Numbers> numbers(3);
  float* const x = numbers[0].of;
  coefficients_of<kTransform>(values, rotation, block, drawn.iterations, x, numbers[1].of,
                              numbers[2].of);
  if (rotation.sent) {
    const float heavier = drawn.unbiased ? weight(block) : 1.0f;
    for (int64_t i = 0; i < block.kept; ++i) x[i] = x[sent[i]] * heavier;
  }
  levels = quantize(x, block.kept, drawn.noises[block.group], block.number, rotation.bits, codes);
}

template <Transform kTransform>
DDP_COMPRESS_INLINE void decode(const uint8_t* codes, Levels levels, const Rotation& rotation,
                                const Block& block, const uint16_t* sent, float* values) {
  const Scratch<Numbers> numbers(2);
  float *x = numbers[0].of, *other = numbers[1].of;
  dequantize(codes, block.kept, levels, rotation.bits, x);
  if (rotation.sent) {
    std::swap(x, other);
    std::fill_n(x, block.size, 0.0f);
    for (int64_t i = 0; i < block.kept; ++i) x[sent[i]] = other[i];
  }
  if (!rotation.free) return turn_back<kTransform>(rotation, block, x, values);
  turn_back<kTransform>(rotation, block, x, x);
  pick(x, block.size, rotation.free, values);
}

// The values of a block, and of what fills none, added to a tile.
template <typename Adds, typename A>
DDP_COMPRESS_INLINE void add(const float* values, int64_t count, const Adds& sum, A* tile) {
  for (int64_t i = 0; i < count; ++i) tile[i] += sum.term(values[i]);
}

template <typename G, typename A>
void add_portable(const float* values, int64_t count, const Sum<G, A>& sum, A* tile) {
  add(values, count, sum, tile);
}

#ifdef DDP_COMPRESS_AVX2
template <typename G, typename A>
DDP_COMPRESS_TARGET_AVX2 void add_avx2(const float* values, int64_t count, const Sum<G, A>& sum,
                                       A* tile) {
  add(values, count, sum, tile);
}

DDP_COMPRESS_TARGET_AVX2 void encode_avx2(const float* values, const Rotation& rotation,
                                          const Block& block, const uint16_t* sent,
                                          const Drawn& drawn, uint8_t* codes, Levels& levels) {
  encode<transform_avx2>(values, rotation, block, sent, drawn, codes, levels);
}

DDP_COMPRESS_TARGET_AVX2 void decode_avx2(const uint8_t* codes, Levels levels,
                                          const Rotation& rotation, const Block& block,
                                          const uint16_t* sent, float* values) {
  decode<transform_avx2>(codes, levels, rotation, block, sent, values);
}
#endif

}  // namespace

void rotated_encode(const float* values, const Rotation& rotation, const Cut& cut,
                    const Drawn& drawn, uint8_t* data) {
  auto one = encode<transform>;
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) one = encode_avx2;
#endif
  uint8_t* numbers = data;
  const auto put = [&](float number) {
    std::memcpy(numbers, &number, sizeof(number));
    numbers += sizeof(number);
  };
  for (const Rest& rest : cut.rests)
    for (int64_t i = 0; i < rest.count; ++i) put(cut_off(values[rest.value + i]));
  for (const Block& block : cut.blocks) {
    Levels levels;
    one(values + block.value, rotation, block, cut.sent.data() + block.list, drawn,
        data + block.byte, levels);
    put(levels.lowest);
    put(levels.step);
  }
}

void rotated_decode(const uint8_t* data, const Rotation& rotation, const Cut& cut, float* values) {
  auto one = decode<transform>;
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) one = decode_avx2;
#endif
  const uint8_t* numbers = data;
  const auto take = [&](void* to, int64_t bytes) {
    std::memcpy(to, numbers, static_cast<size_t>(bytes));
    numbers += bytes;
  };
  for (const Rest& rest : cut.rests)
    if (rest.count > 0) take(values + rest.value, rest.count * int64_t{sizeof(float)});
  for (const Block& block : cut.blocks) {
    Levels levels;
    take(&levels, sizeof(levels));
    one(data + block.byte, levels, rotation, block, cut.sent.data() + block.list,
        values + block.value);
  }
}

// Block after block, which stays in a near cache for all ranks.
template <typename G, typename A>
void rotated_add(const std::vector<const uint8_t*>& ranks, const Rotation& rotation, const Cut& cut,
                 const Sum<G, A>& sum) {
  auto decode_one = decode<transform>;
  auto add_one = add_portable<G, A>;
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) decode_one = decode_avx2, add_one = add_avx2<G, A>;
#endif
  const auto put = writer<G, A>(sum.numel);
  const Scratch<A> made(kLargestBlock);
  const Scratch<Numbers> numbers(1);
  float* const values = numbers[0].of;
  // Calls read(data) for every rank, which fills in as many of `values`.
  const auto add_all = [&](int64_t value, int64_t count, auto read) {
    G* const to = sum.out + (value - sum.first);
    A* tile = made.get();
    if constexpr (std::is_same_v<G, A>) tile = sum.afresh ? tile : to;
    if (sum.afresh)
      std::fill_n(tile, count, A(0));
    else if (static_cast<const void*>(tile) != to)
      std::copy_n(to, count, tile);
    for (const uint8_t* data : ranks) {
      read(data);
      add_one(values, count, sum, tile);
    }
    if (static_cast<const void*>(tile) != to) put(tile, to, count);
  };
  for (const Rest& rest : cut.rests)
    if (rest.count > 0 && sum.holds(rest.value))
      add_all(rest.value, rest.count, [&](const uint8_t* data) {
        std::memcpy(values, data + 4 * rest.exact, 4 * static_cast<size_t>(rest.count));
      });
  const int64_t held = rotation.free ? kHeld : kSmallestBlock;
  int64_t at = 4 * cut.left_over;  // of a block's levels
  for (const Block& block : cut.blocks) {
    if (sum.holds(block.value))
      add_all(block.value, block.size / kSmallestBlock * held, [&](const uint8_t* data) {
        Levels levels;
        std::memcpy(&levels, data + at, sizeof(levels));
        decode_one(data + block.byte, levels, rotation, block, cut.sent.data() + block.list,
                   values);
      });
    at += 8;
  }
  end_streams();
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using Ranks = std::vector<const uint8_t*>;
template void rotated_add(const Ranks&, const Rotation&, const Cut&, const Sum<float, float>&);
template void rotated_add(const Ranks&, const Rotation&, const Cut&, const Sum<BFloat16, float>&);
template void rotated_add(const Ranks&, const Rotation&, const Cut&, const Sum<Half, float>&);
template void rotated_add(const Ranks&, const Rotation&, const Cut&, const Sum<double, double>&);

}  // namespace ddp_compress
