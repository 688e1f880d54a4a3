#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "pack.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;

template <int kPack, bool kMomentum, typename G, typename A>
__device__ void move_pack(const A* residual, const G* grad, const A* momentum, A mu,
                          A* next_residual, A* next_momentum) {
  const Pack<G, kPack> g = pack<kPack>(grad);
  Pack<A, kPack> r = pack<kPack>(residual), m;
  if constexpr (kMomentum) m = pack<kPack>(momentum);
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    A moved = static_cast<A>(g.at[i]);
    if constexpr (kMomentum) moved = m.at[i] = mu * m.at[i] + moved;
    r.at[i] += moved;
  }
  pack<kPack>(next_residual) = r;
  if constexpr (kMomentum) pack<kPack>(next_momentum) = m;
}

// A pack a thread; the last one may hold fewer.
template <int kPack, bool kMomentum, typename G, typename A>
__global__ void move(const A* residual, const G* grad, const A* momentum, A mu, A* next_residual,
                     A* next_momentum, int64_t numel) {
  int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPack;
  if (at + kPack <= numel)
    move_pack<kPack, kMomentum>(residual + at, grad + at, momentum + at, mu, next_residual + at,
                                next_momentum + at);
  else
    for (; at < numel; ++at)
      move_pack<1, kMomentum>(residual + at, grad + at, momentum + at, mu, next_residual + at,
                              next_momentum + at);
}

template <int kPack, typename G, typename A>
void move_packs(const Device& device, const A* residual, const G* grad, const A* momentum, A mu,
                A* next_residual, A* next_momentum, int64_t numel) {
  launch(device, ceil_div(numel, kThreads * kPack), kThreads,
         momentum ? move<kPack, true, G, A> : move<kPack, false, G, A>, residual, grad, momentum,
         mu, next_residual, next_momentum, numel);
}

}  // namespace

template <typename G, typename A>
void accumulate(const Device& device, const A* residual, const G* grad, const A* momentum, A mu,
                A* next_residual, A* next_momentum, int64_t numel) {
  constexpr int kPack = 16 / sizeof(G);
  const bool aligned = is_aligned(residual) && is_aligned(grad) && is_aligned(momentum) &&
                       is_aligned(next_residual) && is_aligned(next_momentum);
  (aligned ? move_packs<kPack, G, A> : move_packs<1, G, A>)(device, residual, grad, momentum, mu,
                                                            next_residual, next_momentum, numel);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
template void accumulate(const Device&, const float*, const float*, const float*, float, float*,
                         float*, int64_t);
template void accumulate(const Device&, const float*, const BFloat16*, const float*, float, float*,
                         float*, int64_t);
template void accumulate(const Device&, const float*, const Half*, const float*, float, float*,
                         float*, int64_t);
template void accumulate(const Device&, const double*, const double*, const double*, double,
                         double*, double*, int64_t);

}  // namespace ddp_compress::cuda
