// The accumulated gradient, added up while it is read, and the hits among it.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>
#include <cstdint>

#include "candidates.h"
#include "simd.h"

namespace ddp_compress {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// residual + (mu * momentum + grad), one element or eight at a time.
template <typename G, typename A, bool kMomentum>
struct Accumulated {
  static constexpr bool kHasMomentum = kMomentum;

  const G* grad;
  const A* residual;
  const A* momentum;
  A mu;
  A* sums;  // or null
  A* next_momentum;

  // The sum of an element, which is left where it is wanted, and the momentum with it.
  A leave(int64_t i) const {
    const A mine = moved(i), value = residual[i] + mine;
    if (sums) sums[i] = value;
    if (kMomentum && next_momentum) next_momentum[i] = mine;
    return value;
  }

  A moved(int64_t i) const {
    const A g = static_cast<A>(grad[i]);
    return kMomentum ? mu * momentum[i] + g : g;
  }
  A operator[](int64_t i) const { return residual[i] + moved(i); }

#ifdef DDP_COMPRESS_AVX2
  DDP_COMPRESS_TARGET_AVX2 static __m256 widen(const float* p) { return _mm256_loadu_ps(p); }
  DDP_COMPRESS_TARGET_AVX2 static __m256 widen(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  DDP_COMPRESS_TARGET_AVX2 static __m256 widen(const BFloat16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  DDP_COMPRESS_TARGET_AVX2 __m256 moved8(int64_t i) const {
    const __m256 g = widen(grad + i);
    if constexpr (!kMomentum) return g;
    return _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(mu), _mm256_loadu_ps(momentum + i)), g);
  }

  // With a mask of all lanes, because without one a compiler warns of its own header.
  static constexpr __mmask16 kAll = 0xFFFF;
  DDP_COMPRESS_TARGET_AVX512 static __m512 widen16(const float* p) { return _mm512_loadu_ps(p); }
  DDP_COMPRESS_TARGET_AVX512 static __m512 widen16(const Half* p) {
    return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  DDP_COMPRESS_TARGET_AVX512 static __m512 widen16(const BFloat16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, half), 16));
  }
  DDP_COMPRESS_TARGET_AVX512 __m512 moved16(int64_t i) const {
    const __m512 g = widen16(grad + i);
    if constexpr (!kMomentum) return g;
    return _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(mu), _mm512_loadu_ps(momentum + i)), g);
  }
#endif
};

// Scans leave the sums where these are wanted, and the momentum with them.
template <typename Source, typename A>
void scan_portable(const Source& source, int64_t begin, int64_t end, int64_t base,
                   const Search<A>& search, Hits<A>& hits) {
  const A above = search.above(), below = search.below();
  for (int64_t i = begin; i < end; ++i) {
    const A value = source.leave(i);
    if (!(value < above && value > below)) hits.push(static_cast<int32_t>(base + i), value);
  }
}

#ifdef DDP_COMPRESS_AVX2
// The elements before the first that begins a whole vector of so many; returns where that is. There
// sums can be stored past the caches.
template <int64_t kWidth, typename Source>
int64_t scan_to_vector(const Source& source, int64_t begin, int64_t end, int64_t base,
                       const Search<float>& search, Hits<float>& hits) {
  const int64_t vector = std::min(end, (begin + kWidth - 1) / kWidth * kWidth);
  scan_portable(source, begin, vector, base, search, hits);
  return vector;
}

// Sums go past the caches: nobody reads them soon, and to read first what they replace, as a cache
// would, costs a quarter of the traffic.
template <bool kSums, typename Source>
DDP_COMPRESS_TARGET_AVX2 void scan_avx2(const Source source, int64_t begin, int64_t end,
                                        int64_t base, const Search<float>& search,
                                        Hits<float>& hits) {
  if constexpr (kSums) begin = scan_to_vector<8>(source, begin, end, base, search, hits);
  const __m256 above = _mm256_set1_ps(search.above()), below = _mm256_set1_ps(search.below());
  int32_t* indices = hits.indices.data();
  float* values = hits.values.data();
  int64_t count = hits.count;
  int64_t i = begin;
  // No branch on a hit: at 1 % density a mispredicted one costs more than the stores.
#pragma GCC unroll 4
  for (; i + 8 <= end; i += 8) {
    const __m256 moved = source.moved8(i);
    const __m256 value = _mm256_add_ps(_mm256_loadu_ps(source.residual + i), moved);
    if constexpr (kSums) {
      _mm256_stream_ps(source.sums + i, value);
      if constexpr (Source::kHasMomentum) _mm256_stream_ps(source.next_momentum + i, moved);
    }
    const __m256 hit = _mm256_or_ps(_mm256_cmp_ps(value, above, _CMP_NLT_UQ),
                                    _mm256_cmp_ps(value, below, _CMP_NGT_UQ));
    const auto mask = static_cast<unsigned>(_mm256_movemask_ps(hit));
    const __m256i order = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLanes[mask].data()));
    const __m256i index = _mm256_add_epi32(order, _mm256_set1_epi32(static_cast<int>(base + i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + count), index);
    _mm256_storeu_ps(values + count, _mm256_permutevar8x32_ps(value, order));
    count += std::popcount(mask);
  }
  hits.count = count;
  scan_portable(source, i, end, base, search, hits);
}

// Where many are equal to the threshold, `hashes` of the block's places keep most of them from
// being hits at all.
template <bool kSums, bool kTies, typename Source>
DDP_COMPRESS_TARGET_AVX512 void scan_avx512(const Source source, int64_t begin, int64_t end,
                                            int64_t base, const Search<float>& search,
                                            const uint32_t* hashes, Hits<float>& hits) {
  const int64_t block = begin;
  if constexpr (kSums) begin = scan_to_vector<16>(source, begin, end, base, search, hits);
  const __m512i least_up = _mm512_set1_epi32(static_cast<int>(search.least_hash_above()));
  const __m512i least_down = _mm512_set1_epi32(static_cast<int>(search.least_hash_below()));
  const __m512 above = _mm512_set1_ps(search.above()), below = _mm512_set1_ps(search.below());
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int32_t* const indices = hits.indices.data();
  float* const values = hits.values.data();
  int64_t i = begin, count = hits.count;
#pragma GCC unroll 4
  for (; i + 16 <= end; i += 16) {
    const __m512 moved = source.moved16(i);
    const __m512 value = _mm512_add_ps(_mm512_loadu_ps(source.residual + i), moved);
    if constexpr (kSums) {
      _mm512_stream_ps(source.sums + i, value);
      if constexpr (Source::kHasMomentum) _mm512_stream_ps(source.next_momentum + i, moved);
    }
    auto up = _mm512_cmp_ps_mask(value, above, _CMP_NLT_UQ);
    auto down = _mm512_cmp_ps_mask(value, below, _CMP_NGT_UQ);
    if constexpr (kTies) {
      const __m512i hash = _mm512_loadu_si512(hashes + (i - block));
      up &= _mm512_cmp_ps_mask(value, above, _CMP_NEQ_UQ) | _mm512_cmpge_epu32_mask(hash, least_up);
      down &=
          _mm512_cmp_ps_mask(value, below, _CMP_NEQ_UQ) | _mm512_cmpge_epu32_mask(hash, least_down);
    }
    const auto mask = static_cast<__mmask16>(up | down);
    const __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(base + i)));
    _mm512_storeu_si512(indices + count, _mm512_maskz_compress_epi32(mask, index));
    _mm512_storeu_ps(values + count, _mm512_maskz_compress_ps(mask, value));
    count += std::popcount(unsigned{mask});
  }
  hits.count = count;
  scan_portable(source, i, end, base, search, hits);
}
#endif

}  // namespace ddp_compress
