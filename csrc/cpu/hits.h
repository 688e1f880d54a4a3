// What a scan has found in a block of elements, and which of it become candidates.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "simd.h"
#include "tie_hash.h"

namespace ddp_compress {

// A magnitude as an unsigned integer that orders like it; infinities and NaNs order above all.
template <typename A>
using Key = std::conditional_t<std::is_same_v<A, float>, uint32_t, uint64_t>;

template <typename A>
constexpr Key<A> kInfinity = std::bit_cast<Key<A>>(std::numeric_limits<A>::infinity());

template <typename A>
Key<A> key_of(A value) {
  return std::bit_cast<Key<A>>(std::abs(value));
}

constexpr int64_t kBlock = 8192;  // elements scanned between two looks at the threshold

// Positions and values, in ascending position: what a scan found in one block.
template <typename A>
struct Hits {
  // Vectors may write or read up to sixteen entries past the last.
  std::array<int32_t, kBlock + 16> indices;
  std::array<A, kBlock + 16> values;
  int64_t count = 0;

  void push(int32_t index, A value) {
    indices[count] = index;
    values[count++] = value;
  }

  // So that vectors may read past the last: a zero is above nothing.
  void close() { std::fill_n(values.begin() + count, 8, A(0)); }
  int64_t whole_vectors() const { return (count + 7) / 8 * 8; }
};

// What decides between equal magnitudes: the larger hash of their places, or without salts, and of
// equal hashes, the first position.
struct Ties {
  const int64_t* bounds;
  const int64_t* salts;
  int64_t params;

  void hash(const int32_t* positions, int64_t count, uint32_t* hashes) const {
    hash_places(positions, count, bounds, salts, params, hashes);
  }
#ifdef DDP_COMPRESS_AVX2
  void hash_range(int64_t first, int64_t count, uint32_t* hashes) const {
    hash_range_avx512(first, count, bounds, salts, params, hashes);
  }
#endif
};

constexpr uint32_t kTopHash = std::numeric_limits<uint32_t>::max();

// Candidates are above the floor, or at it, with a hash above the bar.
template <typename A>
struct Threshold {
  Key<A> floor = 1;
  uint32_t bar = 0;
};

enum class Side { kBoth, kPositive, kNegative };

#ifdef DDP_COMPRESS_AVX2
// Row m lists the set bits of m: the lanes to move to the front.
constexpr auto kLanes = [] {
  std::array<std::array<int32_t, 8>, 256> table{};
  for (size_t mask = 0; mask < 256; ++mask)
    for (int32_t lane = 0, n = 0; lane < 8; ++lane)
      if (mask >> lane & 1) table[mask][static_cast<size_t>(n++)] = lane;
  return table;
}();
#endif

template <typename A>
DDP_COMPRESS_INLINE Key<A> largest_of(const A* values, int64_t count) {
  Key<A> largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, key_of(values[i]));
  return largest;
}

template <typename A>
Key<A> largest_portable(const A* values, int64_t count) {
  return largest_of(values, count);
}

#ifdef DDP_COMPRESS_AVX2
template <typename A>
DDP_COMPRESS_TARGET_AVX2 Key<A> largest_avx2(const A* values, int64_t count) {
  return largest_of(values, count);
}
#endif

// Which hits become candidates: those of a side, and where there are hashes those that outdo the
// floor, or at the floor the bar.
template <typename A>
struct Admission {
  Side side;
  Key<A> floor;
  uint32_t bar;
  const uint32_t* hashes;  // of a block's hits; null where all of the side are admitted

  bool operator()(A value, int64_t i) const {
    const bool here = side == Side::kBoth || std::signbit(value) == (side == Side::kNegative);
    return here && (!hashes || key_of(value) > floor || hashes[i] > bar);
  }
};

// Puts what is admitted of a block's hits behind `count` candidates; returns how many there are
// then. Stores may write up to eight entries past the last.
template <typename A>
int64_t append_portable(const Hits<A>& hits, const Admission<A>& admits, int32_t* indices,
                        A* values, int64_t count) {
  for (int64_t i = 0; i < hits.count; ++i) {
    indices[count] = hits.indices[i];
    values[count] = hits.values[i];
    count += admits(hits.values[i], i);
  }
  return count;
}

#ifdef DDP_COMPRESS_AVX2
DDP_COMPRESS_TARGET_AVX2 inline int64_t append_avx2(const Hits<float>& hits,
                                                    const Admission<float>& admits,
                                                    int32_t* indices, float* values,
                                                    int64_t count) {
  const __m256i top = _mm256_set1_epi32(INT32_MIN), rest = _mm256_set1_epi32(INT32_MAX);
  const __m256i floor = _mm256_set1_epi32(static_cast<int>(admits.floor));
  const __m256i bar = _mm256_xor_si256(top, _mm256_set1_epi32(static_cast<int>(admits.bar)));
  const unsigned both = admits.side == Side::kBoth ? 255 : 0;
  const unsigned flipped = admits.side == Side::kPositive ? 255 : 0;
  const auto load = [](const auto* from) DDP_COMPRESS_TARGET_AVX2 {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  };
  for (int64_t i = 0; i < hits.count; i += 8) {
    const __m256 value = _mm256_loadu_ps(&hits.values[i]);
    unsigned mask = (static_cast<unsigned>(_mm256_movemask_ps(value)) ^ flipped) | both;
    mask &= 255u >> (8 - std::min<int64_t>(8, hits.count - i));
    if (admits.hashes) {
      const __m256i hash = _mm256_xor_si256(top, load(admits.hashes + i));
      const __m256i size = _mm256_and_si256(rest, _mm256_castps_si256(value));
      const __m256i over =
          _mm256_or_si256(_mm256_cmpgt_epi32(size, floor), _mm256_cmpgt_epi32(hash, bar));
      mask &= static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(over)));
      if (mask == 0) continue;  // as nearly always, where all are equal
    }
    const __m256i order = load(kLanes[mask].data());
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + count),
                        _mm256_permutevar8x32_epi32(load(&hits.indices[i]), order));
    _mm256_storeu_ps(values + count, _mm256_permutevar8x32_ps(value, order));
    count += std::popcount(mask);
  }
  return count;
}
#endif

// The fastest loops of this processor, asked for once.
template <typename A>
struct Fastest {
  decltype(&append_portable<A>) append = append_portable<A>;
  decltype(&largest_portable<A>) largest = largest_portable<A>;

  Fastest() {
#ifdef DDP_COMPRESS_AVX2
    if (!use_avx2()) return;
    largest = largest_avx2<A>;
    if constexpr (std::is_same_v<A, float>) append = append_avx2;
#endif
  }
};

}  // namespace ddp_compress
