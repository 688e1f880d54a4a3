// The accumulated gradient: residual + (mu * momentum + grad), added up while it is read.
#pragma once

#include "pack.cuh"

namespace ddp_compress::cuda {

constexpr int kVector = 4;  // elements read together

template <typename T, int kRows>
struct Rows {
  Pack<T, kVector> at[kRows];

  // Calls f(element, row, place) for each.
  template <typename F>
  __device__ void for_each(F f) {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kVector; ++j) f(at[i].at[j], i, j);
  }
};

template <int kRows, typename T>
__device__ Rows<T, kRows> load_rows(const T* first, int distance) {
  Rows<T, kRows> rows;
#pragma unroll
  for (int i = 0; i < kRows; ++i) rows.at[i] = load_once<kVector>(first + i * distance);
  return rows;
}

template <typename G, typename A>
struct Accumulated {
  const G* grad;
  const A* residual;
  const A* momentum;  // may be null
  A mu;
  A* next_momentum;  // gets the momentum as it is read; null where nobody wants it

  __device__ A operator[](int64_t i) const {
    A g = static_cast<A>(grad[i]);
    if (momentum) g = mu * momentum[i] + g;
    if (next_momentum) next_momentum[i] = g;
    return residual[i] + g;
  }

  // Whether elements can be read together, from every kVector-th.
  bool aligned() const {
    return is_aligned(grad) && is_aligned(residual) && is_aligned(momentum) &&
           is_aligned(next_momentum);
  }

  // Rows of vectors: the first starts at `first`, the others at even distances. Two of the three
  // tensors are under way at once, which is what there are registers for.
  template <int kRows>
  __device__ Rows<A, kRows> load(int64_t first, int distance) const {
    Rows<A, kRows> sums, r;
    const auto g = load_rows<kRows>(grad + first, distance);
    if (momentum) {
      const auto m = load_rows<kRows>(momentum + first, distance);
      sums.for_each([&](A& sum, int row, int j) {
        sum = mu * m.at[row].at[j] + static_cast<A>(g.at[row].at[j]);
      });
      if (next_momentum)
#pragma unroll
        for (int row = 0; row < kRows; ++row)
          store_once<kVector>(next_momentum + first + row * distance, sums.at[row]);
      r = load_rows<kRows>(residual + first, distance);
    } else {
      r = load_rows<kRows>(residual + first, distance);
      sums.for_each([&](A& sum, int row, int j) { sum = static_cast<A>(g.at[row].at[j]); });
    }
    sums.for_each([&](A& sum, int row, int j) { sum = r.at[row].at[j] + sum; });
    return sums;
  }
};

}  // namespace ddp_compress::cuda
