// The accumulated gradient: residual + (mu * momentum + grad), added up while it is read.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ddp_compress::cuda {

constexpr int kVector = 4;  // elements loaded together

template <typename T>
struct alignas(sizeof(T) * kVector < 16 ? sizeof(T) * kVector : 16) Vector {
  T at[kVector];
};

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

  // Whether elements can be loaded together, from every kVector-th.
  bool aligned() const {
    const auto at = [](const auto* p) { return reinterpret_cast<uintptr_t>(p); };
    return at(grad) % alignof(Vector<G>) == 0 && at(residual) % alignof(Vector<A>) == 0 &&
           at(momentum) % alignof(Vector<A>) == 0;
  }

  __device__ Vector<A> load(int64_t i) const {
    const auto g = *reinterpret_cast<const Vector<G>*>(grad + i);
    const auto r = *reinterpret_cast<const Vector<A>*>(residual + i);
    Vector<A> sum;
    if constexpr (kMomentum) {
      const auto m = *reinterpret_cast<const Vector<A>*>(momentum + i);
      for (int j = 0; j < kVector; ++j)
        sum.at[j] = r.at[j] + (mu * m.at[j] + static_cast<A>(g.at[j]));
    } else {
      for (int j = 0; j < kVector; ++j) sum.at[j] = r.at[j] + static_cast<A>(g.at[j]);
    }
    return sum;
  }
};

}  // namespace ddp_compress::cuda
