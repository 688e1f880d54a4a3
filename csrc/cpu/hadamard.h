// The randomized Walsh-Hadamard transform of a block, which stays in a near cache.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "../butterflies.h"
#include "../tie_hash.h"
#include "simd.h"

namespace ddp_compress {

// Multiplies by plus or minus 1 / sqrt(size), at random.
DDP_COMPRESS_INLINE void flip(const float* from, int64_t size, uint64_t salt, uint64_t number,
                              float* to) {
  constexpr int kBits = 32;
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(size)));
  for (int64_t at = 0; at < size; at += kBits) {
    const uint64_t word = random_word(salt, static_cast<uint64_t>(at / 64), number);
    const auto bits = static_cast<uint32_t>(word >> at % 64);
#pragma GCC ivdep
    for (int i = 0; i < kBits; ++i) {
      const uint32_t sign = bits << (kBits - 1 - i) & 0x80000000u;
      to[at + i] = std::bit_cast<float>(std::bit_cast<uint32_t>(scale * from[at + i]) ^ sign);
    }
  }
}

// The transforms of all R numbers that are `stride` apart: log2(R) steps while they are in
// registers. Neighbours go side by side, as many as T holds.
template <int R, typename T>
DDP_COMPRESS_INLINE void pass(float* x, int64_t size, int64_t stride) {
  constexpr int64_t kSide = sizeof(T) / sizeof(float);
  for (float* const end = x + size; x < end; x += R * stride) {
    for (int64_t i = 0; i < stride; i += kSide) {
      T mine[R];
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) mine[j] = *reinterpret_cast<T*>(x + j * stride + i);
      butterflies(mine);
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) *reinterpret_cast<T*>(x + j * stride + i) = mine[j];
    }
  }
}

#ifdef __GNUC__
using Side = float __attribute__((vector_size(32), aligned(4), may_alias));
#else
using Side = float;
#endif

// All steps but those of eight neighbours, of which a block has several.
DDP_COMPRESS_INLINE void far_steps(float* x, int64_t size) {
  int64_t stride = 8;
  for (; size / stride >= 8; stride *= 8) pass<8, Side>(x, size, stride);
  if (size / stride == 4) pass<4, Side>(x, size, stride);
  if (size / stride == 2) pass<2, Side>(x, size, stride);
}

inline void transform(float* x, int64_t size) {
  pass<8, float>(x, size, 1);
  far_steps(x, size);
}

#ifdef DDP_COMPRESS_AVX2
// The transform of eight neighbours in one register: b + a where a lane holds a, else a + -b.
DDP_COMPRESS_TARGET_AVX2 inline __m256 butterflies_of(__m256 x) {
  const __m256 one = _mm256_setr_ps(0.f, -0.f, 0.f, -0.f, 0.f, -0.f, 0.f, -0.f);
  const __m256 two = _mm256_setr_ps(0.f, 0.f, -0.f, -0.f, 0.f, 0.f, -0.f, -0.f);
  const __m256 four = _mm256_setr_ps(0.f, 0.f, 0.f, 0.f, -0.f, -0.f, -0.f, -0.f);
  x = _mm256_add_ps(_mm256_permute_ps(x, 0b10110001), _mm256_xor_ps(x, one));
  x = _mm256_add_ps(_mm256_permute_ps(x, 0b01001110), _mm256_xor_ps(x, two));
  return _mm256_add_ps(_mm256_permute2f128_ps(x, x, 1), _mm256_xor_ps(x, four));
}

DDP_COMPRESS_TARGET_AVX2 inline void transform_avx2(float* x, int64_t size) {
  for (int64_t i = 0; i < size; i += 8)
    _mm256_storeu_ps(x + i, butterflies_of(_mm256_loadu_ps(x + i)));
  far_steps(x, size);
}
#endif

}  // namespace ddp_compress
