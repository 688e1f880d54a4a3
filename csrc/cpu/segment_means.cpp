#include <algorithm>

#include "../exact_mean.h"
#include "../kernels.h"

namespace ddp_compress {

template <typename A>
double exact_mean(const A* values, int64_t count, bool magnitudes) {
  Magnitude<A> largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, magnitude(values[i]));
  const ExactMean<A> scale(largest);
  const Magnitude<A> mask = magnitudes ? kMagnitude<A> : -1;
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += scale.term(__builtin_bit_cast(A, __builtin_bit_cast(Magnitude<A>, values[i]) & mask));
  return scale.mean(sum, count);
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
