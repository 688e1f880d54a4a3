#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "../kernels.h"

namespace ddp_compress {

// The mean through an exact integer sum, so that any order of summation (a GPU's too) gives the
// same bits: values are scaled to 31-bit integers by the largest exponent among them.
// Magnitudes are compared as integers, which order alike: so the loops have no branch nor call,
// and a compiler can use vectors.
template <typename A>
double exact_mean(const A* values, int64_t count, bool magnitudes) {
  using Bits = std::conditional_t<std::is_same_v<A, float>, int32_t, int64_t>;
  constexpr Bits kMagnitude = std::numeric_limits<Bits>::max();
  if (count == 0) return 0.0;
  Bits top = 0;
  for (int64_t i = 0; i < count; ++i)
    top = std::max(top, std::bit_cast<Bits>(values[i]) & kMagnitude);
  const double largest = std::bit_cast<A>(top);
  if (!std::isfinite(largest)) return std::numeric_limits<double>::quiet_NaN();
  int exponent;
  std::frexp(largest, &exponent);
  const int shift = 31 - std::max(exponent, -900);  // keeps 2**shift a finite double
  const double scale = std::ldexp(1.0, shift);
  // Adding 1.5 * 2**52 rounds to the nearest integer, halves to even, and leaves it in the lowest
  // bits; what is rounded is at most 2**31.
  constexpr double kRound = 6755399441055744.0;
  const Bits mask = magnitudes ? kMagnitude : Bits{-1};
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double value = std::bit_cast<A>(std::bit_cast<Bits>(values[i]) & mask);
    sum += std::bit_cast<uint64_t>(value * scale + kRound) - std::bit_cast<uint64_t>(kRound);
  }
  return std::ldexp(static_cast<double>(static_cast<int64_t>(sum)) / static_cast<double>(count),
                    -shift);
}

template <typename A>
void segment_means(const A* values, const int64_t* counts, int64_t segments, float* means) {
  for (int64_t s = 0; s < segments; ++s) {
    means[s] = static_cast<float>(exact_mean(values, counts[s]));
    values += counts[s];
  }
}

template double exact_mean(const float*, int64_t, bool);
template double exact_mean(const double*, int64_t, bool);
template void segment_means(const float*, const int64_t*, int64_t, float*);
template void segment_means(const double*, const int64_t*, int64_t, float*);

}  // namespace ddp_compress
