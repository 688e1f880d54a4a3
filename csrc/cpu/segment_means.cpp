#include "../kernels.h"
#include "exact_mean_of.h"

namespace ddp_compress {
namespace {

#ifdef DDP_COMPRESS_AVX2
template <typename A>
DDP_COMPRESS_TARGET_AVX2 double exact_mean_avx2(const A* values, int64_t count) {
  return exact_mean_of(values, count, false);
}
#endif

template <typename A>
double exact_mean_portable(const A* values, int64_t count) {
  return exact_mean_of(values, count, false);
}

}  // namespace

template <typename A>
MeanOf<A> fastest_exact_mean() {
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) return exact_mean_avx2<A>;
#endif
  return exact_mean_portable<A>;
}

template <typename A>
void segment_means(const A* values, const int64_t* counts, int64_t segments, float* means) {
  const auto mean = fastest_exact_mean<A>();
  for (int64_t s = 0; s < segments; ++s) {
    means[s] = static_cast<float>(mean(values, counts[s]));
    values += counts[s];
  }
}

template MeanOf<float> fastest_exact_mean();
template MeanOf<double> fastest_exact_mean();
template void segment_means(const float*, const int64_t*, int64_t, float*);
template void segment_means(const double*, const int64_t*, int64_t, float*);

}  // namespace ddp_compress
