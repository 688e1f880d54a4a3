// Gradients of every dtype, and both paths of a kernel that has two.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <limits>

#include "target.h"

namespace ddp_compress::fuzz {

// Calls f(G{}, A{}) with some gradient's type and the type its memory is kept in.
template <typename F>
void any_dtype(Random& random, F f) {
  switch (random.below(4)) {
    case 0:
      return f(float{}, float{});
    case 1:
      return f(torch::headeronly::BFloat16{}, float{});
    case 2:
      return f(torch::headeronly::Half{}, float{});
    default:
      return f(double{}, double{});
  }
}

// Ties, zeros, either end of the range, and rarely what is not finite.
template <typename T>
std::vector<T> numbers(Random& random, int64_t count) {
  const bool ties = random.one_in(3), wild = random.one_in(8);
  std::vector<T> all(static_cast<size_t>(count));
  for (T& each : all) {
    double value = static_cast<double>(random.below(2001) - 1000) / (ties ? 500 : 7);
    if (ties) value = static_cast<double>(static_cast<int>(value));
    if (wild && random.one_in(50)) value = static_cast<double>(std::numeric_limits<T>::max());
    if (wild && random.one_in(50))
      value = static_cast<double>(std::numeric_limits<T>::denorm_min());
    if (wild && random.one_in(5000)) value = std::numeric_limits<double>::infinity();
    each = static_cast<T>(static_cast<float>(value));
  }
  return all;
}

// What a kernel leaves behind by its wide path, or by its portable one.
template <typename Run>
auto portably(bool portable, Run run) {
  if (portable)
    setenv("DDP_COMPRESS_PORTABLE", "1", 1);
  else
    unsetenv("DDP_COMPRESS_PORTABLE");
  return run();
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace ddp_compress::fuzz
