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

// As many blocks of a kernel as a device runs at once; at least one.
template <typename... Parameters>
int64_t room_for_blocks(void (*kernel)(Parameters...), int threads) {
#ifdef __CUDACC__
  int index, processors, each;
  check(cudaGetDevice(&index));
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0));
  return std::max(int64_t{processors} * each, int64_t{1});
#else
  return 5;
#endif
}

// Runs a kernel whose blocks take turns (see grid.cuh) on no more than `wanted`; at least one.
template <typename... Parameters, typename... Arguments>
void launch_in_turns(const Device& device, int64_t wanted, int threads,
                     void (*kernel)(Parameters...), Arguments... arguments) {
  const auto blocks = std::clamp<int64_t>(wanted, 1, room_for_blocks(kernel, threads));
#ifdef __CUDACC__
  kernel<<<static_cast<unsigned>(blocks), threads, 0, stream_of(device)>>>(arguments...);
#else
  emulate(static_cast<unsigned>(blocks), static_cast<unsigned>(threads), true,
          [&] { kernel(arguments...); });
#endif
  check(cudaGetLastError());
}

template <typename T>
void fill_zero(const Device& device, T* data, int64_t count) {
  if (count == 0) return;
  check(cudaMemsetAsync(data, 0, static_cast<size_t>(count) * sizeof(T), stream_of(device)));
}

// Lanes that read different arguments do so one after another: so they read few, and wide ones.
constexpr int64_t kAtOnce = sizeof(uint4);  // bytes

template <int64_t kBytes>
struct Packet {
  uint4 words[kBytes / kAtOnce];
};

template <int64_t kBytes>
__global__ void unpack(const __grid_constant__ Packet<kBytes> packet, uint4* out, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    out[i] = packet.words[i];
}

template <int64_t kBytes>
void send(const Device& device, const char* from, char* to, int64_t bytes) {
  Packet<kBytes> packet;
  std::memcpy(packet.words, from, static_cast<size_t>(bytes));
  launch(device, 1, 256, unpack<kBytes>, packet, reinterpret_cast<uint4*>(to),
         static_cast<int>(ceil_div(bytes, kAtOnce)));
}

// A copy on the device, of host memory that may be gone when this returns. It travels as kernel
// arguments, because a CUDA graph would remember where a copy came from, not what was copied.
template <typename T>
T* upload(const Device& device, const T* host, int64_t count) {
  constexpr int64_t kSmall = 2048, kLarge = 32000;  // arguments may take 32764 bytes
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  const auto* const from = reinterpret_cast<const char*>(host);
  char* const to = device.array<char>(ceil_div(bytes, kAtOnce) * kAtOnce);
  if (bytes <= kSmall) {
    send<kSmall>(device, from, to, bytes);
  } else {
    for (int64_t at = 0; at < bytes; at += kLarge)
      send<kLarge>(device, from + at, to + at, std::min(bytes - at, kLarge));
  }
  return reinterpret_cast<T*>(to);
}

template <typename T>
T* upload(const Device& device, const std::vector<T>& host) {
  return upload(device, host.data(), static_cast<int64_t>(host.size()));
}

}  // namespace ddp_compress::cuda
