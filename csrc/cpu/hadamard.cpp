#include <algorithm>
#include <bit>
#include <cmath>

#include "../butterflies.h"
#include "../kernels.h"
#include "../tie_hash.h"
#include "simd.h"

namespace ddp_compress {
namespace {

// Multiplies by plus or minus scale.
DDP_COMPRESS_INLINE void flip(float* x, int64_t count, uint64_t salt, float scale) {
  constexpr int kBits = 32;
  for (int64_t at = 0; at < count; at += kBits) {
    const uint64_t word = random_word(salt, static_cast<uint64_t>(at / 64));
    const auto bits = static_cast<uint32_t>(word >> at % 64);
    const auto turn = [&](int i) {
      const uint32_t sign = bits << (kBits - 1 - i) & 0x80000000u;
      x[at + i] = std::bit_cast<float>(std::bit_cast<uint32_t>(scale * x[at + i]) ^ sign);
    };
    if (count - at >= kBits) {
#pragma GCC ivdep
      for (int i = 0; i < kBits; ++i) turn(i);
    } else {
      for (int i = 0; i < count - at; ++i) turn(i);
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

// The steps from `stride` on, but for those from `end` on.
template <typename T>
DDP_COMPRESS_INLINE void passes(float* x, int64_t size, int64_t stride, int64_t end) {
  for (; end / stride >= 8; stride *= 8) pass<8, T>(x, size, stride);
  if (end / stride == 4) pass<4, T>(x, size, stride);
  if (end / stride == 2) pass<2, T>(x, size, stride);
}

#ifdef __GNUC__
using Side = float __attribute__((vector_size(32), aligned(4), may_alias));
#else
using Side = float;
#endif

DDP_COMPRESS_INLINE void far_steps(float* x, int64_t size) {
  if (size > 8) passes<Side>(x, size, 8, size);
}

void transform(float* x, int64_t size) {
  passes<float>(x, size, 1, std::min<int64_t>(size, 8));
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

DDP_COMPRESS_TARGET_AVX2 void transform_avx2(float* x, int64_t size) {
  if (size < 8) return passes<float>(x, size, 1, size);
  for (int64_t i = 0; i < size; i += 8)
    _mm256_storeu_ps(x + i, butterflies_of(_mm256_loadu_ps(x + i)));
  far_steps(x, size);
}

DDP_COMPRESS_TARGET_AVX2 void flip_avx2(float* x, int64_t count, uint64_t salt, float scale) {
  flip(x, count, salt, scale);
}
#endif

}  // namespace

// Every block stays in a near cache from its first step to its last.
void hadamard(float* values, const int64_t* bounds, const int64_t* salts, int64_t blocks,
              bool inverse) {
  auto turn = flip;
  auto change = transform;
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) turn = flip_avx2, change = transform_avx2;
#endif
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = bounds[b], size = bounds[b + 1] - first;
    if (size == 0) continue;
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(size)));
    const auto salt = static_cast<uint64_t>(salts[b]);
    if (!inverse) turn(values + first, size, salt, scale);
    change(values + first, size);
    if (inverse) turn(values + first, size, salt, scale);
  }
}

}  // namespace ddp_compress
