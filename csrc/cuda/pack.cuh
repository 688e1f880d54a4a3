// Neighbours that a thread reads and writes at once, in words of up to 16 bytes.
#pragma once

#include <type_traits>

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

template <int kCount, typename T>
__device__ const Pack<T, kCount>& pack(const T* first) {
  return *reinterpret_cast<const Pack<T, kCount>*>(first);
}

// A pack as the words that one instruction moves.
template <typename T, int kCount>
struct Words {
  using Word = std::conditional_t<sizeof(Pack<T, kCount>) % sizeof(uint4) == 0, uint4, uint2>;
  static constexpr int kWords = sizeof(Pack<T, kCount>) / sizeof(Word);
  Word at[kWords];
};

// The same as `pack` for what nobody reads again soon, which need not stay in caches. No vector is
// split, and loads start in the order they are written: so all can be under way before the first is
// waited for.
template <int kCount, typename T>
__device__ Pack<T, kCount> load_once(const T* first) {
  using W = Words<T, kCount>;
  W words;
  for (int i = 0; i < W::kWords; ++i)
    words.at[i] = __ldcs(reinterpret_cast<const typename W::Word*>(first) + i);
  return __builtin_bit_cast(Pack<T, kCount>, words);
}

template <int kCount, typename T>
__device__ void store_once(T* first, const Pack<T, kCount>& values) {
  using W = Words<T, kCount>;
  const auto words = __builtin_bit_cast(W, values);
  for (int i = 0; i < W::kWords; ++i)
    __stcs(reinterpret_cast<typename W::Word*>(first) + i, words.at[i]);
}

template <typename T>
bool is_aligned(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

}  // namespace ddp_compress::cuda
