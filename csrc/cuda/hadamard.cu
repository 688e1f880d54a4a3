#include "../butterflies.h"
#include "../tie_hash.h"
#include "launch.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float flipped(float value, uint64_t salt, int i) {
  const auto sign = static_cast<unsigned>(random_word(salt, i / 64) >> i % 64) << 31;
  return __uint_as_float(__float_as_uint(value) ^ sign);
}

// The transforms of all R numbers of a block that are `stride` apart.
template <int R>
__device__ void pass(float* x, int size, int stride) {
  for (int i = static_cast<int>(threadIdx.x); i < size / R; i += kThreads) {
    float* const first = x + i / stride * stride * R + i % stride;
    float mine[R];
#pragma unroll
    for (int j = 0; j < R; ++j) mine[j] = first[j * stride];
    butterflies(mine);
#pragma unroll
    for (int j = 0; j < R; ++j) first[j * stride] = mine[j];
  }
  __syncthreads();
}

// A CUDA block for each block.
__global__ void transform(float* values, const int64_t* bounds, const int64_t* salts,
                          bool inverse) {
  __shared__ float x[kLargestBlock];
  const int64_t start = bounds[blockIdx.x];
  const auto size = static_cast<int>(bounds[blockIdx.x + 1] - start);
  const auto salt = static_cast<uint64_t>(salts[blockIdx.x]);
  const auto scale = static_cast<float>(1 / sqrt(static_cast<double>(size)));
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < size; i += kThreads)
    x[i] = inverse ? values[start + i] : flipped(scale * values[start + i], salt, i);
  __syncthreads();
  int stride = 1;
  for (; size / stride >= 8; stride *= 8) pass<8>(x, size, stride);
  if (size / stride == 4) pass<4>(x, size, stride);
  if (size / stride == 2) pass<2>(x, size, stride);
  for (int i = thread; i < size; i += kThreads)
    values[start + i] = inverse ? flipped(scale * x[i], salt, i) : x[i];
}

}  // namespace

void hadamard(const Device& device, float* values, const int64_t* host_bounds,
              const int64_t* host_salts, int64_t blocks, bool inverse) {
  launch(device, blocks, kThreads, transform, values, upload(device, host_bounds, blocks + 1),
         upload(device, host_salts, blocks), inverse);
}

}  // namespace ddp_compress::cuda
