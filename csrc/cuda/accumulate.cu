#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "launch.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;  // elements a thread

template <typename G, typename A, bool kMomentum>
__global__ void move(A* residual, G* grad, A* momentum, A mu, int64_t numel) {
  const int64_t first = int64_t{blockIdx.x} * kThreads * kEach + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t at = first + i * kThreads;
    if (at >= numel) return;
    A g = static_cast<A>(grad[at]);
    if constexpr (kMomentum) momentum[at] = g = mu * momentum[at] + g;
    residual[at] += g;
    grad[at] = G(0);
  }
}

}  // namespace

template <typename G, typename A>
void accumulate(const Device& device, A* residual, G* grad, A* momentum, A mu, int64_t numel) {
  launch(device, ceil_div(numel, kThreads * kEach), kThreads,
         momentum ? move<G, A, true> : move<G, A, false>, residual, grad, momentum, mu, numel);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
template void accumulate(const Device&, float*, float*, float*, float, int64_t);
template void accumulate(const Device&, float*, BFloat16*, float*, float, int64_t);
template void accumulate(const Device&, float*, Half*, float*, float, int64_t);
template void accumulate(const Device&, double*, double*, double*, double, int64_t);

}  // namespace ddp_compress::cuda
