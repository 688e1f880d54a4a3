// How host code puts work on a stream.
//
// tests/emulation has a <cuda_runtime.h> of its own, with which a C++ compiler builds these files
// for the CPU; beside CUDA's language it knows what kernels here use, and no more.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace ddp_compress::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

inline void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

inline cudaStream_t stream_of(const Device& device) {
  return static_cast<cudaStream_t>(device.stream);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs a kernel on `blocks` blocks; on none it does nothing.
template <typename... Parameters, typename... Arguments>
void launch(const Device& device, int64_t blocks, int threads, void (*kernel)(Parameters...),
            Arguments... arguments) {
  if (blocks == 0) return;
#ifdef __CUDACC__
  kernel<<<static_cast<unsigned>(blocks), threads, 0, stream_of(device)>>>(arguments...);
#else
  emulate(static_cast<unsigned>(blocks), static_cast<unsigned>(threads), false,
          [&] { kernel(arguments...); });
#endif
  check(cudaGetLastError());
}

// Runs a kernel whose blocks wait for each other (see grid.cuh) on as many as there is room
// for at once, but no more than `wanted`; at least one.
template <typename... Parameters, typename... Arguments>
void launch_together(const Device& device, int64_t wanted, int threads,
                     void (*kernel)(Parameters...), Arguments... arguments) {
#ifdef __CUDACC__
  int index, processors, each;
  check(cudaGetDevice(&index));
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0));
  const int64_t room = int64_t{processors} * each;
  const auto blocks = static_cast<unsigned>(std::clamp<int64_t>(wanted, 1, room));
  std::tuple<Parameters...> values(arguments...);
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value...};
        check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks),
                                          dim3(threads), pointers, 0, stream_of(device)));
      },
      values);
#else
  constexpr int64_t kRoom = 5;
  emulate(static_cast<unsigned>(std::clamp<int64_t>(wanted, 1, kRoom)),
          static_cast<unsigned>(threads), true, [&] { kernel(arguments...); });
#endif
}

template <typename T>
void fill_zero(const Device& device, T* data, int64_t count) {
  if (count == 0) return;
  check(cudaMemsetAsync(data, 0, static_cast<size_t>(count) * sizeof(T), stream_of(device)));
}

template <int kBytes>
struct Packet {
  uint8_t bytes[kBytes];
};

template <int kBytes>
__global__ void unpack(const __grid_constant__ Packet<kBytes> packet, uint8_t* out, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    out[i] = packet.bytes[i];
}

template <int kBytes>
void send(const Device& device, const uint8_t* from, uint8_t* to, int64_t count) {
  Packet<kBytes> packet;
  std::memcpy(packet.bytes, from, static_cast<size_t>(count));
  launch(device, 1, 1024, unpack<kBytes>, packet, to, static_cast<int>(count));
}

// A copy on the device, of host memory that may be gone when this returns. It travels as kernel
// arguments, because a CUDA graph would remember where a copy came from, not what was copied.
template <typename T>
T* upload(const Device& device, const T* host, int64_t count) {
  constexpr int64_t kSmall = 2048, kLarge = 32000;  // arguments may take 32764 bytes
  T* const data = device.array<T>(count);
  const auto* const from = reinterpret_cast<const uint8_t*>(host);
  auto* const to = reinterpret_cast<uint8_t*>(data);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  if (bytes <= kSmall) {
    send<kSmall>(device, from, to, bytes);
    return data;
  }
  for (int64_t at = 0; at < bytes; at += kLarge)
    send<kLarge>(device, from + at, to + at, std::min(bytes - at, kLarge));
  return data;
}

template <typename T>
T* upload(const Device& device, const std::vector<T>& host) {
  return upload(device, host.data(), static_cast<int64_t>(host.size()));
}

}  // namespace ddp_compress::cuda
