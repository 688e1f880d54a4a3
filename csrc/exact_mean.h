// The mean through an exact integer sum, so that any order of summation (a GPU's too) gives the
// same bits: values are scaled to 31-bit integers by the largest exponent among them.
//
//   largest = max over values of magnitude(value);  scale = ExactMean<A>(largest);
//   sum = sum over values of scale.term(value);     mean = scale.mean(sum, count)
//
// Magnitudes are compared as integers, which order alike (a NaN is above all): so loops over them
// have no branch nor call, and a compiler can use vectors.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "host_device.h"

namespace ddp_compress {

template <typename A>
using Magnitude = std::conditional_t<std::is_same_v<A, float>, int32_t, int64_t>;

// All bits but the sign.
template <typename A>
constexpr Magnitude<A> kMagnitude = std::numeric_limits<Magnitude<A>>::max();

template <typename A>
DDP_COMPRESS_HD inline Magnitude<A> magnitude(A value) {
  return __builtin_bit_cast(Magnitude<A>, value) & kMagnitude<A>;
}

template <typename A>
class ExactMean {
 public:
  DDP_COMPRESS_HD explicit ExactMean(Magnitude<A> largest) {
    const double top = __builtin_bit_cast(A, largest);
    const auto field = static_cast<int>(__builtin_bit_cast(int64_t, top) >> kFraction);
    finite_ = field <= kMostField;
    const int shift = 30 + kBias - (field > kLeastField ? field : kLeastField);
    scale_ = power_of_two(shift);
    unscale_ = power_of_two(-shift);
  }

  // A value as an integer. Adding 1.5 * 2**52 rounds to the nearest, halves to even, and leaves it
  // in the lowest bits; what is rounded is at most 2**31. Sums wrap where values are not finite.
  DDP_COMPRESS_HD uint64_t term(double value) const {
    constexpr double kRound = 6755399441055744.0;
    const double rounded = value * scale_ + kRound;
    return __builtin_bit_cast(uint64_t, rounded) - __builtin_bit_cast(uint64_t, kRound);
  }

  // 0 of no values, NaN where one is not finite.
  DDP_COMPRESS_HD double mean(uint64_t sum, int64_t count) const {
    if (count == 0) return 0.0;
    if (!finite_) return kNan;
    return static_cast<double>(static_cast<int64_t>(sum)) / static_cast<double>(count) * unscale_;
  }

 private:
  static constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  // Of a double: bits of its fraction, and the exponent's field for 1, for the largest finite
  // numbers, and for what is small enough here: with it 2**shift is finite.
  static constexpr int kFraction = 52, kBias = 1023, kMostField = 2046, kLeastField = kBias - 901;

  DDP_COMPRESS_HD static double power_of_two(int exponent) {
    return __builtin_bit_cast(double, static_cast<int64_t>(kBias + exponent) << kFraction);
  }

  double scale_, unscale_;
  bool finite_;
};

}  // namespace ddp_compress
