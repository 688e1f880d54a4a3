// Neighbours that a thread reads and writes at once, in words of up to 16 bytes.
#pragma once

#include "launch.cuh"

namespace ddp_compress::cuda {

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T at[kCount];
};

template <int kCount, typename T>
__device__ Pack<T, kCount>& pack(T* first) {
  return *reinterpret_cast<Pack<T, kCount>*>(first);
}

template <typename T>
bool is_aligned(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

}  // namespace ddp_compress::cuda
