// A list that a kernel is given. A few travel as its arguments, which saves a launch.
#pragma once

#include "launch.cuh"

namespace ddp_compress::cuda {

template <typename T>
struct Several {
  static constexpr int64_t kFew = 8;
  T few[kFew];
  const T* many;  // null where they are few
  int64_t count;

  __device__ const T& operator[](int64_t i) const { return many ? many[i] : few[i]; }
};

template <typename T>
Several<T> several(const Device& device, const std::vector<T>& list) {
  Several<T> sent{{}, nullptr, static_cast<int64_t>(list.size())};
  if (sent.count <= Several<T>::kFew)
    std::copy(list.begin(), list.end(), sent.few);
  else
    sent.many = upload(device, list);
  return sent;
}

}  // namespace ddp_compress::cuda
