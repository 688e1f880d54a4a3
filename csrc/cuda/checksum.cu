#include "../checksum.h"
#include "grid.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 8;  // words a thread

template <bool kAligned>
__device__ uint32_t load_word(const uint8_t* p) {
  if constexpr (kAligned) return *reinterpret_cast<const uint32_t*>(p);
  return p[0] | p[1] << 8 | p[2] << 16 | uint32_t{p[3]} << 24;
}

// The message's size, and its last word, which holds 0 to 3 bytes.
__device__ uint32_t ends(const uint8_t* data, int64_t size) {
  uint32_t tail = 0;
  for (int64_t i = size / 4 * 4; i < size; ++i) tail |= uint32_t{data[i]} << i % 4 * 8;
  return mix(static_cast<uint32_t>(size)) + mix_word(tail, size / 4);
}

// Adds to `sum`, modulo 2**32.
template <bool kAligned>
__global__ void add_terms(const uint8_t* data, int64_t size, unsigned* sum) {
  const int64_t first = int64_t{blockIdx.x} * kThreads * kEach + threadIdx.x;
  uint32_t words[kEach];  // all of them on the way at once
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t at = first + i * kThreads;
    words[i] = at < size / 4 ? load_word<kAligned>(data + 4 * at) : 0;
  }
  uint32_t mine = first == 0 ? ends(data, size) : 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t at = first + i * kThreads;
    if (at < size / 4) mine += mix_word(words[i], at);
  }
  mine = sum_of_block<kThreads>(mine);
  if (threadIdx.x == 0) atomicAdd(sum, mine);
}

}  // namespace

void checksum(const Device& device, const uint8_t* data, int64_t size, int64_t* sum) {
  fill_zero(device, sum, 1);
  auto* const low = reinterpret_cast<unsigned*>(sum);  // little-endian: the lower half
  launch(device, std::max<int64_t>(1, ceil_div(size / 4, kThreads * kEach)), kThreads,
         reinterpret_cast<uintptr_t>(data) % 4 ? add_terms<false> : add_terms<true>, data, size,
         low);
}

}  // namespace ddp_compress::cuda
