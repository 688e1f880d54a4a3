#include "../uniform.h"
#include "grid.cuh"
#include "launch.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCodes = 8;  // that one thread packs at once, into as many bytes as a code has bits

// A block's numbers and where its bytes begin. Behind the last block come the ends.
struct Block {
  int64_t value, byte;
};

__device__ Levels levels_of(const float* values, int64_t count, int last) {
  int32_t smallest = INT32_MAX, largest = INT32_MIN;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const int32_t value = ordered(values[i]);
    smallest = value < smallest ? value : smallest;
    largest = value > largest ? value : largest;
  }
  smallest = reduce<kThreads>(smallest, [](int32_t a, int32_t b) { return a < b ? a : b; });
  largest = reduce<kThreads>(largest, [](int32_t a, int32_t b) { return a > b ? a : b; });
  return levels_between(smallest, largest, last);
}

// A CUDA block for each block.
__global__ void encode(const float* values, const Block* blocks, const int64_t* salts, int bits,
                       uint8_t* codes, float* levels) {
  const Block here = blocks[blockIdx.x];
  const int64_t count = blocks[blockIdx.x + 1].value - here.value;
  const int last = (1 << bits) - 1;
  values += here.value;
  codes += here.byte;
  const Levels mine = count ? levels_of(values, count, last) : Levels{};
  if (threadIdx.x == 0) {
    levels[2 * blockIdx.x] = mine.lowest;
    levels[2 * blockIdx.x + 1] = mine.step;
  }
  const auto salt = static_cast<uint64_t>(salts[blockIdx.x]);
  for (int64_t first = threadIdx.x * kCodes; first < count; first += kThreads * kCodes) {
    const int some = static_cast<int>(count - first < kCodes ? count - first : kCodes);
    uint64_t packed = 0, word = 0;
    for (int i = 0; i < some && is_step(mine.step); ++i) {
      if (i % kDraws == 0) word = random_word(salt, static_cast<uint64_t>((first + i) / kDraws));
      const int code = code_of(values[first + i], mine, noise(word, i % kDraws), last);
      packed |= static_cast<uint64_t>(code) << bits * i;
    }
    for (int byte = 0; byte < (bits * some + 7) / 8; ++byte)
      codes[first / kCodes * bits + byte] = static_cast<uint8_t>(packed >> 8 * byte);
  }
}

__global__ void decode(const uint8_t* codes, const float* levels, const Block* blocks, int bits,
                       float* values) {
  const Block here = blocks[blockIdx.x];
  const int64_t count = blocks[blockIdx.x + 1].value - here.value;
  const float lowest = levels[2 * blockIdx.x], step = levels[2 * blockIdx.x + 1];
  values += here.value;
  codes += here.byte;
  for (int64_t first = threadIdx.x * kCodes; first < count; first += kThreads * kCodes) {
    const int some = static_cast<int>(count - first < kCodes ? count - first : kCodes);
    uint64_t packed = 0;
    for (int byte = 0; byte < (bits * some + 7) / 8; ++byte)
      packed |= static_cast<uint64_t>(codes[first / kCodes * bits + byte]) << 8 * byte;
    for (int i = 0; i < some; ++i) {
      const auto code = static_cast<int>(packed >> bits * i) & ((1 << bits) - 1);
      values[first + i] = lowest + static_cast<float>(code) * step;
    }
  }
}

Block* table(const Device& device, const int64_t* bounds, int64_t blocks, int bits) {
  std::vector<Block> all{{0, 0}};
  for (int64_t b = 0; b < blocks; ++b)
    all.push_back(
        {bounds[b + 1], all.back().byte + ceil_div(bits * (bounds[b + 1] - bounds[b]), 8)});
  return upload(device, all);
}

}  // namespace

void uniform_encode(const Device& device, const float* values, const int64_t* host_bounds,
                    const int64_t* host_salts, int64_t blocks, int bits, uint8_t* codes,
                    float* levels) {
  launch(device, blocks, kThreads, encode, values, table(device, host_bounds, blocks, bits),
         upload(device, host_salts, blocks), bits, codes, levels);
}

void uniform_decode(const Device& device, const uint8_t* codes, const float* levels,
                    const int64_t* host_bounds, int64_t blocks, int bits, float* values) {
  launch(device, blocks, kThreads, decode, codes, levels, table(device, host_bounds, blocks, bits),
         bits, values);
}

}  // namespace ddp_compress::cuda
