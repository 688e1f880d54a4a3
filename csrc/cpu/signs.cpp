#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "../kernels.h"
#include "exact_mean_of.h"
#include "write.h"

namespace ddp_compress {
namespace {

template <typename A>
using Word = std::make_unsigned_t<Magnitude<A>>;

// A number's sign alone, where bit i is set.
template <typename A>
DDP_COMPRESS_INLINE Word<A> sign_at(uint32_t bits, int i) {
  constexpr int kTop = 8 * sizeof(A) - 1;
  return static_cast<Word<A>>(bits >> i & 1) << kTop;
}

template <typename A>
DDP_COMPRESS_INLINE uint8_t signs_of(const A* values, int64_t count) {
  unsigned byte = 0;
  for (int64_t i = 0; i < count; ++i)
    byte |= unsigned{std::bit_cast<Magnitude<A>>(values[i]) < 0} << i;
  return static_cast<uint8_t>(byte);
}

// The signs of a block, and what they are worth.
template <typename A>
DDP_COMPRESS_INLINE void encode(const A* values, int64_t count, uint8_t* bits, float* scale) {
  *scale = static_cast<float>(exact_mean_of(values, count, true));
  for (int64_t at = 0; at < count; at += 8)
    *bits++ = signs_of(values + at, std::min<int64_t>(8, count - at));
}

template <typename A>
void encode_portable(const A* values, int64_t count, uint8_t* bits, float* scale) {
  encode(values, count, bits, scale);
}

// What is added or written: either sign of one number.
template <typename A, typename Put>
DDP_COMPRESS_INLINE void for_each_sign(const uint8_t* bits, int64_t count, A number, A* to,
                                       Put put) {
  const auto positive = std::bit_cast<Word<A>>(number);
  constexpr int kBits = 32;
  int64_t at = 0;
  for (; at + kBits <= count; at += kBits) {
    uint32_t word;
    std::memcpy(&word, bits + at / 8, sizeof(word));
#pragma GCC ivdep
    for (int i = 0; i < kBits; ++i)
      put(to[at + i], std::bit_cast<A>(positive ^ sign_at<A>(word, i)));
  }
  for (; at < count; ++at)
    put(to[at], std::bit_cast<A>(positive ^ sign_at<A>(bits[at / 8], static_cast<int>(at % 8))));
}

template <typename A>
DDP_COMPRESS_INLINE void add(const uint8_t* bits, int64_t count, A number, A* to) {
  for_each_sign(bits, count, number, to, [](A& out, A value) { out += value; });
}

template <typename A>
void add_portable(const uint8_t* bits, int64_t count, A number, A* to) {
  add(bits, count, number, to);
}

DDP_COMPRESS_INLINE void decode(const uint8_t* bits, int64_t count, float number, float* to) {
  for_each_sign(bits, count, number, to, [](float& out, float value) { out = value; });
}

void decode_portable(const uint8_t* bits, int64_t count, float number, float* to) {
  decode(bits, count, number, to);
}

#ifdef DDP_COMPRESS_AVX2
DDP_COMPRESS_TARGET_AVX2 void decode_avx2(const uint8_t* bits, int64_t count, float number,
                                          float* to) {
  decode(bits, count, number, to);
}

template <typename A>
DDP_COMPRESS_TARGET_AVX2 void add_avx2(const uint8_t* bits, int64_t count, A number, A* to) {
  add(bits, count, number, to);
}

template <typename A>
DDP_COMPRESS_TARGET_AVX2 void encode_avx2(const A* values, int64_t count, uint8_t* bits,
                                          float* scale) {
  if constexpr (std::is_same_v<A, double>) {
    encode(values, count, bits, scale);
  } else {
    *scale = static_cast<float>(exact_mean_of(values, count, true));
    int64_t at = 0;
    for (; at + 8 <= count; at += 8)
      *bits++ = static_cast<uint8_t>(_mm256_movemask_ps(_mm256_loadu_ps(values + at)));
    if (at < count) *bits = signs_of(values + at, count - at);
  }
}
#endif

// Calls each(values, count, byte, scale) with the first value, byte and scale of every block.
template <typename Each>
void for_each_block(const int64_t* bounds, int64_t segments, int64_t block, Each each) {
  int64_t byte = 0, scale = 0;
  for (int64_t s = 0; s < segments; ++s) {
    const int64_t end = bounds[s + 1];
    for (int64_t at = bounds[s]; at < end;) {
      const int64_t count = std::min(block, end - at);
      each(at, count, byte, scale++);
      byte += (count + 7) / 8;
      at += count;
    }
  }
}

}  // namespace

template <typename A>
void sign_encode(const A* values, const int64_t* bounds, int64_t segments, int64_t block,
                 uint8_t* bits, float* scales) {
  auto one = encode_portable<A>;
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) one = encode_avx2<A>;
#endif
  for_each_block(bounds, segments, block, [&](int64_t at, int64_t count, int64_t byte, int64_t s) {
    one(values + at, count, bits + byte, scales + s);
  });
}

void sign_decode(const uint8_t* bits, const float* scales, const int64_t* bounds, int64_t segments,
                 int64_t block, float* values) {
  auto one = decode_portable;
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) one = decode_avx2;
#endif
  for_each_block(bounds, segments, block, [&](int64_t at, int64_t count, int64_t byte, int64_t s) {
    one(bits + byte, count, scales[s], values + at);
  });
}

// Tile after tile, which stays in the L1 cache for all ranks.
template <typename G, typename A>
void sign_add(G* out, const std::vector<SignList>& ranks, const int64_t* bounds, int64_t segments,
              int64_t block, A scale, bool afresh) {
  auto add_one = add_portable<A>;
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) add_one = add_avx2<A>;
#endif
  const auto put = writer<G, A>(bounds[segments]);
  alignas(32) A made[kMade];
  for_each_block(bounds, segments, block, [&](int64_t at, int64_t count, int64_t byte, int64_t s) {
    for (int64_t first = 0; first < count; first += kMade) {
      const int64_t here = std::min(kMade, count - first);
      const auto add_all = [&](A* tile) {
        for (const SignList& rank : ranks)
          add_one(rank.bits + byte + first / 8, here, static_cast<A>(rank.scales[s]) * scale, tile);
      };
      G* const to = out + at + first;
      if constexpr (std::is_same_v<G, A>) {
        if (!afresh) {
          add_all(to);
          continue;
        }
      }
      if (afresh)
        std::fill(made, made + here, A(0));
      else
        std::copy(to, to + here, made);
      add_all(made);
      put(made, to, here);
    }
  });
  end_streams();
}

template void sign_encode(const float*, const int64_t*, int64_t, int64_t, uint8_t*, float*);
template void sign_encode(const double*, const int64_t*, int64_t, int64_t, uint8_t*, float*);

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using SignLists = std::vector<SignList>;
template void sign_add(float*, const SignLists&, const int64_t*, int64_t, int64_t, float, bool);
template void sign_add(BFloat16*, const SignLists&, const int64_t*, int64_t, int64_t, float, bool);
template void sign_add(Half*, const SignLists&, const int64_t*, int64_t, int64_t, float, bool);
template void sign_add(double*, const SignLists&, const int64_t*, int64_t, int64_t, double, bool);

}  // namespace ddp_compress
