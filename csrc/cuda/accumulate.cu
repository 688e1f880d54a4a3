#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "pack.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;

template <int kPack, bool kMomentum, typename G, typename A>
__device__ void move_pack(A* residual, G* grad, A* momentum, A mu) {
  const Pack<G, kPack> g = pack<kPack>(grad);
  Pack<A, kPack> r = pack<kPack>(residual), m;
  if constexpr (kMomentum) m = pack<kPack>(momentum);
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    A moved = static_cast<A>(g.at[i]);
    if constexpr (kMomentum) moved = m.at[i] = mu * m.at[i] + moved;
    r.at[i] += moved;
  }
  pack<kPack>(residual) = r;
  if constexpr (kMomentum) pack<kPack>(momentum) = m;
  pack<kPack>(grad) = {};
}

// A pack a thread; the last one may hold fewer.
template <int kPack, bool kMomentum, typename G, typename A>
__global__ void move(A* residual, G* grad, A* momentum, A mu, int64_t numel) {
  int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPack;
  if (at + kPack <= numel)
    move_pack<kPack, kMomentum>(residual + at, grad + at, momentum + at, mu);
  else
    for (; at < numel; ++at) move_pack<1, kMomentum>(residual + at, grad + at, momentum + at, mu);
}

template <int kPack, typename G, typename A>
void move_packs(const Device& device, A* residual, G* grad, A* momentum, A mu, int64_t numel) {
  launch(device, ceil_div(numel, kThreads * kPack), kThreads,
         momentum ? move<kPack, true, G, A> : move<kPack, false, G, A>, residual, grad, momentum,
         mu, numel);
}

}  // namespace

template <typename G, typename A>
void accumulate(const Device& device, A* residual, G* grad, A* momentum, A mu, int64_t numel) {
  constexpr int kPack = 16 / sizeof(G);
  if (is_aligned(residual) && is_aligned(grad) && is_aligned(momentum))
    move_packs<kPack>(device, residual, grad, momentum, mu, numel);
  else
    move_packs<1>(device, residual, grad, momentum, mu, numel);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
template void accumulate(const Device&, float*, float*, float*, float, int64_t);
template void accumulate(const Device&, float*, BFloat16*, float*, float, int64_t);
template void accumulate(const Device&, float*, Half*, float*, float, int64_t);
template void accumulate(const Device&, double*, double*, double*, double, int64_t);

}  // namespace ddp_compress::cuda
