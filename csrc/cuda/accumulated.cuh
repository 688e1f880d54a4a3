// The accumulated gradient: residual + (mu * momentum + grad), added up while it is read.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace ddp_compress::cuda {

constexpr int kVector = 4;  // elements loaded together

template <typename T>
struct Vector {
  T at[kVector];
};

// What a vector is loaded as. Its alignment is at most 16 bytes, for which there is one load.
template <typename T>
using Words = std::conditional_t<sizeof(T) == 2, uint2, uint4>;

template <typename T>
__device__ Vector<T> load_vector(const T* p) {
  struct {
    Words<T> part[sizeof(Vector<T>) / sizeof(Words<T>)];
  } words;
  int i = 0;
  for (auto& part : words.part) part = __ldg(reinterpret_cast<const Words<T>*>(p) + i++);
  return __builtin_bit_cast(Vector<T>, words);
}

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
    return at(grad) % alignof(Words<G>) == 0 && at(residual) % alignof(Words<A>) == 0 &&
           at(momentum) % alignof(Words<A>) == 0;
  }

  __device__ Vector<A> load(int64_t i) const {
    const Vector<G> g = load_vector(grad + i);
    const Vector<A> r = load_vector(residual + i);
    Vector<A> sum;
    if constexpr (kMomentum) {
      const Vector<A> m = load_vector(momentum + i);
      for (int j = 0; j < kVector; ++j)
        sum.at[j] = r.at[j] + (mu * m.at[j] + static_cast<A>(g.at[j]));
    } else {
      for (int j = 0; j < kVector; ++j) sum.at[j] = r.at[j] + static_cast<A>(g.at[j]);
    }
    return sum;
  }
};

}  // namespace ddp_compress::cuda
