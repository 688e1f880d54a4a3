#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "../kernels.h"
#include "simd.h"

namespace ddp_compress {
namespace {

template <typename G, typename A>
DDP_COMPRESS_INLINE void move(const A* __restrict residual, const G* __restrict grad,
                              const A* __restrict momentum, A mu, A* __restrict next_residual,
                              A* __restrict next_momentum, int64_t numel) {
  if (momentum) {
    for (int64_t i = 0; i < numel; ++i) {
      next_momentum[i] = mu * momentum[i] + static_cast<A>(grad[i]);
      next_residual[i] = residual[i] + next_momentum[i];
    }
  } else {
    for (int64_t i = 0; i < numel; ++i) next_residual[i] = residual[i] + static_cast<A>(grad[i]);
  }
}

#ifdef DDP_COMPRESS_AVX2
// The commonest case, written past the caches: what is written there is not read again in this
// pass, and to read it first, as a cache would, costs a quarter of the traffic. Returns how far it
// came.
template <bool kMomentum>
DDP_COMPRESS_TARGET_AVX2 int64_t stream(const float* residual, const float* grad,
                                        const float* momentum, float mu, float* next_residual,
                                        float* next_momentum, int64_t numel) {
  const __m256 factor = _mm256_set1_ps(mu);
  int64_t i = 0;
  for (; i + 8 <= numel; i += 8) {
    __m256 moved = _mm256_loadu_ps(grad + i);
    if constexpr (kMomentum) {
      moved = _mm256_add_ps(_mm256_mul_ps(factor, _mm256_loadu_ps(momentum + i)), moved);
      _mm256_stream_ps(next_momentum + i, moved);
    }
    _mm256_stream_ps(next_residual + i, _mm256_add_ps(_mm256_loadu_ps(residual + i), moved));
  }
  end_streams();
  return i;
}

// The same loops in wider registers: a quarter faster.
template <typename G, typename A>
DDP_COMPRESS_TARGET_AVX2 void move_avx2(const A* residual, const G* grad, const A* momentum, A mu,
                                        A* next_residual, A* next_momentum, int64_t numel) {
  int64_t done = 0;
  if constexpr (std::is_same_v<G, float>)
    if (is_aligned(next_residual) && is_aligned(next_momentum))
      done = (momentum ? stream<true> : stream<false>)(residual, grad, momentum, mu, next_residual,
                                                       next_momentum, numel);
  const auto rest = [=](auto* data) { return data ? data + done : data; };
  move(residual + done, grad + done, rest(momentum), mu, next_residual + done, rest(next_momentum),
       numel - done);
}
#endif

}  // namespace

// Takes the gradient into other memory, in one pass:
//   next_momentum = mu * momentum + grad;  next_residual = residual + next_momentum.
template <typename G, typename A>
void accumulate(const A* residual, const G* grad, const A* momentum, A mu, A* next_residual,
                A* next_momentum, int64_t numel) {
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2())
    return move_avx2(residual, grad, momentum, mu, next_residual, next_momentum, numel);
#endif
  move(residual, grad, momentum, mu, next_residual, next_momentum, numel);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
template void accumulate(const float*, const float*, const float*, float, float*, float*, int64_t);
template void accumulate(const float*, const BFloat16*, const float*, float, float*, float*,
                         int64_t);
template void accumulate(const float*, const Half*, const float*, float, float*, float*, int64_t);
template void accumulate(const double*, const double*, const double*, double, double*, double*,
                         int64_t);

}  // namespace ddp_compress
