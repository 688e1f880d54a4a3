#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../kernels.h"

namespace ddp_compress {

// Moves the gradient into memory and leaves zeros behind, in one pass:
//   momentum = mu * momentum + grad;  residual += momentum;  grad = 0.
template <typename G, typename A>
void accumulate(A* __restrict residual, G* __restrict grad, A* __restrict momentum, A mu,
                int64_t numel) {
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

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
template void accumulate(float*, float*, float*, float, int64_t);
template void accumulate(float*, BFloat16*, float*, float, int64_t);
template void accumulate(float*, Half*, float*, float, int64_t);
template void accumulate(double*, double*, double*, double, int64_t);

}  // namespace ddp_compress
