// Kernels of convolutions as integers, many at a time, so that each is a lane of a vector.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../exact_mean.h"
#include "simd.h"

namespace ddp_compress {

constexpr int64_t kTile = 32;
constexpr int kBits = 24;  // of the integers

// The integers of a kernel, W: int32 where a kernel's sums fit into it, else double.
constexpr int64_t kMostInt32 = (int64_t{1} << (31 - kBits)) - 1;  // elements

// Multiplies by 2**exponent and rounds to the nearest integer, halves to even.
template <typename A, typename W>
struct Rounding {
  double scale;

  DDP_COMPRESS_INLINE explicit Rounding(int64_t exponent)
      : scale(std::bit_cast<double>((1023 + exponent) << 52)) {}
  DDP_COMPRESS_INLINE double operator()(A value) const {
    constexpr double kRound = 6755399441055744.0;  // 1.5 * 2**52
    return static_cast<double>(value) * scale + kRound - kRound;
  }
};
template <>
struct Rounding<float, int32_t> {
  float scale, rest;  // two factors: the smallest numbers need more than the largest power of two

  DDP_COMPRESS_INLINE explicit Rounding(int64_t exponent) {
    const auto both = static_cast<int32_t>(exponent), first = std::min(both, 127);
    scale = std::bit_cast<float>((127 + first) << 23);
    rest = std::bit_cast<float>((127 + both - first) << 23);
  }
  DDP_COMPRESS_INLINE int32_t operator()(float value) const {
    return static_cast<int32_t>(std::rint(value * scale * rest));
  }
};

// The least exponent that is told apart, as of std::frexp.
template <typename A>
constexpr int64_t kLeast = std::is_same_v<A, float> ? -148 : -900;

// Some kernels of one size, element w of kernel l at [w * kTile + l].
template <typename A, typename W>
struct Tile {
  std::vector<A> values;
  std::vector<W> whole;  // as integers
  Magnitude<A> largest[kTile];
  double unit[kTile];  // what an integer stands for
  double mass[kTile];  // the sum of magnitudes, as an integer

  explicit Tile(int64_t m)
      : values(static_cast<size_t>(m * kTile)), whole(static_cast<size_t>(m * kTile)) {}

  // Returns whether they are finite, or else has no integers. `rows` are their first elements;
  // where there are fewer than may be, the rest is what it was.
  DDP_COMPRESS_INLINE bool fill(const A* const* rows, int64_t count, int64_t m, int64_t stride) {
    A* const x = values.data();
    for (int64_t l = 0; l < count; ++l)
#pragma GCC unroll 4
      for (int64_t w = 0; w < m; ++w) x[w * kTile + l] = rows[l][w * stride];
    std::fill(largest, largest + kTile, 0);
    for (int64_t w = 0; w < m; ++w)
      for (int64_t l = 0; l < kTile; ++l)
        largest[l] = std::max(largest[l], magnitude(x[w * kTile + l]));
    const A most = std::bit_cast<A>(*std::max_element(largest, largest + kTile));
    if (!(most <= std::numeric_limits<A>::max())) return false;
    round(m);
    return true;
  }

 private:
  DDP_COMPRESS_INLINE void round(int64_t m) {
    int64_t exponents[kTile];
    for (int64_t l = 0; l < kTile; ++l) {
      const auto top = static_cast<double>(std::bit_cast<A>(largest[l]));
      exponents[l] = std::max((std::bit_cast<int64_t>(top) >> 52) - 1022, kLeast<A>) - kBits;
      unit[l] = std::bit_cast<double>((1023 + exponents[l]) << 52);
    }
    W sums[kTile] = {};
    for (int64_t w = 0; w < m; ++w)
      for (int64_t l = 0; l < kTile; ++l) {
        const W each = Rounding<A, W>(-exponents[l])(values[w * kTile + l]);
        whole[w * kTile + l] = each;
        sums[l] += std::abs(each);
      }
    std::copy(sums, sums + kTile, mass);
  }
};

}  // namespace ddp_compress
