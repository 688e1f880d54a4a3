// The accumulated gradient: residual + (mu * momentum + grad), added up while it is read.
#pragma once

#include "pack.cuh"

namespace ddp_compress::cuda {

constexpr int kVector = 4;  // elements read together

template <typename G, typename A, bool kMomentum>
struct Accumulated {
  const G* grad;
  const A* residual;
  const A* momentum;
  A mu;

  __device__ A operator[](int64_t i) const {
    A g = static_cast<A>(grad[i]);
    if constexpr (kMomentum) g = mu * momentum[i] + g;
    return residual[i] + g;
  }

  // Whether elements can be read together, from every kVector-th.
  bool aligned() const { return is_aligned(grad) && is_aligned(residual) && is_aligned(momentum); }

  __device__ Pack<A, kVector> load(int64_t i) const {
    const auto g = pack<kVector>(grad + i);
    const auto r = pack<kVector>(residual + i);
    Pack<A, kVector> sum;
    if constexpr (kMomentum) {
      const auto m = pack<kVector>(momentum + i);
      for (int j = 0; j < kVector; ++j)
        sum.at[j] = r.at[j] + (mu * m.at[j] + static_cast<A>(g.at[j]));
    } else {
      for (int j = 0; j < kVector; ++j) sum.at[j] = r.at[j] + static_cast<A>(g.at[j]);
    }
    return sum;
  }
};

}  // namespace ddp_compress::cuda
