#include <algorithm>
#include <cmath>

#include "../kernels.h"

namespace ddp_compress {

// The mean through an exact integer sum, so that any order of summation (a GPU's too) gives the
// same bits: values are scaled to 31-bit integers by the largest exponent among them.
template <typename A>
double exact_mean(const A* values, int64_t count) {
  if (count == 0) return 0.0;
  double largest = 0.0;
  for (int64_t i = 0; i < count; ++i)
    largest = std::max(largest, std::abs(static_cast<double>(values[i])));
  int exponent;
  std::frexp(largest, &exponent);
  const int shift = 31 - std::max(exponent, -900);  // keeps 2**shift a finite double
  const double scale = std::ldexp(1.0, shift);
  // Adding and taking away 1.5 * 2**52 rounds to the nearest integer, halves to even, without a
  // call; what is rounded is at most 2**31.
  constexpr double kRound = 6755399441055744.0;
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += static_cast<int64_t>((static_cast<double>(values[i]) * scale + kRound) - kRound);
  return std::ldexp(static_cast<double>(sum) / static_cast<double>(count), -shift);
}

template <typename A>
void segment_means(const A* values, const int64_t* counts, int64_t segments, float* means) {
  for (int64_t s = 0; s < segments; ++s) {
    means[s] = static_cast<float>(exact_mean(values, counts[s]));
    values += counts[s];
  }
}

template double exact_mean(const float*, int64_t);
template double exact_mean(const double*, int64_t);
template void segment_means(const float*, const int64_t*, int64_t, float*);
template void segment_means(const double*, const int64_t*, int64_t, float*);

}  // namespace ddp_compress
