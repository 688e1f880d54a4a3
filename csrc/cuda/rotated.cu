#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../exact_mean.h"
#include "../rotated.h"
#include "../tie_hash.h"
#include "../uniform.h"
#include "../wire_values.h"
#include "grid.cuh"
#include "several.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kEach = kLargestBlock / kThreads;  // numbers of a block that a thread keeps
constexpr int kCodes = 8;  // that one thread packs at once, into as many bytes as a code has bits
constexpr int kPlaces = kSmallestBlock;

// What both sides know, on the device.
struct Known {
  const Block* blocks;
  const int64_t* signs;  // as in Rotation
  const int64_t* free;
  const uint16_t* sent;  // null: all travel
  int bits;
};

// Calls f(i, k) for the numbers of a block that this thread keeps, as its k-th.
template <typename F>
__device__ void for_each_own(int size, F f) {
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * kThreads;
    if (i < size) f(i, k);
  }
}

// ----------------------------------------------------------------------- turned in shared memory

__device__ float flipped(float value, uint64_t salt, int number, int i) {
  const auto sign = static_cast<unsigned>(random_word(salt, i / 64, number) >> i % 64) << 31;
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

__device__ void transform(float* x, int size) {
  int stride = 1;
  for (; size / stride >= 8; stride *= 8) pass<8>(x, size, stride);
  if (size / stride == 4) pass<4>(x, size, stride);
  if (size / stride == 2) pass<2>(x, size, stride);
}

// How a block is turned.
class Turner {
 public:
  __device__ Turner(const Known& known, const Block& block)
      : turned_(known.signs != nullptr),
        size_(block.size),
        number_(block.number),
        salt_(turned_ ? static_cast<uint64_t>(known.signs[block.group]) : 0),
        scale_(static_cast<float>(1 / sqrt(static_cast<double>(size_)))) {}

  // x = the coefficients of what number(i, k) gives.
  template <typename Number>
  __device__ void turn(float* x, Number number) const {
    for_each_own(size_, [&](int i, int k) { x[i] = flip(number(i, k), i); });
    __syncthreads();
    if (turned_) transform(x, size_);
  }

  // Calls put(i, k, number) with what x turns back to.
  template <typename Put>
  __device__ void turn_back(float* x, Put put) const {
    __syncthreads();
    if (turned_) transform(x, size_);
    for_each_own(size_, [&](int i, int k) { put(i, k, flip(x[i], i)); });
    __syncthreads();
  }

 private:
  __device__ float flip(float value, int i) const {
    return turned_ ? flipped(scale_ * value, salt_, number_, i) : value;
  }

  const bool turned_;
  const int size_, number_;
  const uint64_t salt_;
  const float scale_;
};

// Which value of a block its i-th coefficient holds; -1 for none.
__device__ int held(const int64_t* free, int i) {
  if (!free) return i;
  const int gap = static_cast<int>(free[i / kPlaces]), place = i % kPlaces;
  return place == gap ? -1 : i / kPlaces * (kPlaces - 1) + place - (place > gap);
}

// -------------------------------------------------------------------------------------- encode

__device__ float cut_off(float value) {  // a NaN stays
  return value > kFarthest ? kFarthest : value < -kFarthest ? -kFarthest : value;
}

// Where a block's coefficients are cut off, from the mean of their magnitudes.
__device__ float limit_of(const float* x, int size) {
  using Sum = unsigned long long;
  Magnitude<float> largest = 0;
  for_each_own(size, [&](int i, int) { largest = larger(largest, magnitude(x[i])); });
  const ExactMean<float> scale(reduce<kThreads>(largest, larger<Magnitude<float>>));
  Sum sum = 0;
  for_each_own(size, [&](int i, int) { sum += scale.term(fabs(x[i])); });
  return kDeviation * static_cast<float>(scale.mean(sum_of_block<kThreads>(sum), size));
}

// x = the coefficients of a block's values.
__device__ void coefficients_of(const float* values, const Known& known, const Block& here,
                                int64_t iterations, float* x) {
  const Turner turner(known, here);
  float rest[kEach], total[kEach];
  for_each_own(here.size, [&](int i, int k) {
    const int value = held(known.free, i);
    rest[k] = value < 0 ? 0 : cut_off(values[value]);
    total[k] = 0;
  });
  const auto of_rest = [&](int, int k) { return rest[k]; };
  for (int64_t iteration = 1; iteration < iterations; ++iteration) {
    turner.turn(x, of_rest);
    const float limit = limit_of(x, here.size);
    for_each_own(here.size, [&](int i, int k) {
      const float below = x[i] < limit ? x[i] : limit;
      x[i] = below > -limit ? below : -limit;
      total[k] += x[i];
    });
    turner.turn_back(x, [&](int i, int k, float number) {
      if (held(known.free, i) >= 0) rest[k] -= number;
    });
  }
  turner.turn(x, of_rest);
  if (iterations > 1) for_each_own(here.size, [&](int i, int k) { x[i] = total[k] + x[i]; });
  __syncthreads();
}

// x = those of its numbers that travel.
__device__ void select(const uint16_t* sent, int kept, float weight, float* x) {
  float mine[kEach];
  for_each_own(kept, [&](int i, int k) { mine[k] = x[sent[i]] * weight; });
  __syncthreads();
  for_each_own(kept, [&](int i, int k) { x[i] = mine[k]; });
  __syncthreads();
}

__device__ Levels levels_of(const float* x, int count, int last) {
  int32_t smallest = INT32_MAX, largest = INT32_MIN;
  for_each_own(count, [&](int i, int) {
    smallest = smaller(smallest, ordered(x[i]));
    largest = larger(largest, ordered(x[i]));
  });
  smallest = reduce<kThreads>(smallest, cuda::smaller<int32_t>);
  largest = reduce<kThreads>(largest, cuda::larger<int32_t>);
  return levels_between(smallest, largest, last);
}

__device__ void put_codes(const float* x, int count, Levels levels, uint64_t salt, int number,
                          int bits, uint8_t* codes) {
  const int last = (1 << bits) - 1;
  for (int first = static_cast<int>(threadIdx.x) * kCodes; first < count;
       first += kThreads * kCodes) {
    const int some = smaller(count - first, kCodes);
    uint64_t packed = 0, word = 0;
    for (int i = 0; i < some && is_step(levels.step); ++i) {
      if (i % kDraws == 0) word = random_word(salt, (first + i) / kDraws, number);
      const auto draw = static_cast<uint16_t>(word >> 16 * (i % kDraws));
      const int code = code_of(x[first + i], levels, noise(draw), last);
      packed |= static_cast<uint64_t>(code) << bits * i;
    }
    for (int byte = 0; byte < (bits * some + 7) / 8; ++byte)
      codes[first / kCodes * bits + byte] = static_cast<uint8_t>(packed >> 8 * byte);
  }
}

// A CUDA block for each block; `levels` stand at the beginning of the message.
__global__ void __launch_bounds__(kThreads)
    encode(const float* values, const Known known, const int64_t* noises, bool unbiased,
           int64_t iterations, uint8_t* data, float* levels) {
  __shared__ float x[kLargestBlock];
  const Block here = known.blocks[blockIdx.x];
  coefficients_of(values + here.value, known, here, iterations, x);
  if (known.sent) select(known.sent + here.list, here.kept, unbiased ? weight(here) : 1.0f, x);
  const Levels mine = levels_of(x, here.kept, (1 << known.bits) - 1);
  if (threadIdx.x == 0) {
    levels[2 * blockIdx.x] = mine.lowest;
    levels[2 * blockIdx.x + 1] = mine.step;
  }
  put_codes(x, here.kept, mine, static_cast<uint64_t>(noises[here.group]), here.number, known.bits,
            data + here.byte);
}

// A warp for the rest of each group.
__global__ void __launch_bounds__(kThreads)
    take_rests(const float* values, const Rest* rests, int64_t groups, float* exact) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (thread / kWarp >= groups) return;
  const Rest rest = rests[thread / kWarp];
  const int64_t i = thread % kWarp;
  if (i < rest.count) exact[rest.exact + i] = cut_off(values[rest.value + i]);
}

// -------------------------------------------------------------------------------------- decode

// Calls put(i, number) for the levels of all codes.
template <typename Put>
__device__ void for_each_level(const uint8_t* codes, int count, float lowest, float step, int bits,
                               Put put) {
  for (int first = static_cast<int>(threadIdx.x) * kCodes; first < count;
       first += kThreads * kCodes) {
    const int some = smaller(count - first, kCodes);
    uint64_t packed = 0;
    for (int byte = 0; byte < (bits * some + 7) / 8; ++byte)
      packed |= static_cast<uint64_t>(codes[first / kCodes * bits + byte]) << 8 * byte;
    for (int i = 0; i < some; ++i) {
      const auto code = static_cast<int>(packed >> bits * i) & ((1 << bits) - 1);
      put(first + i, lowest + static_cast<float>(code) * step);
    }
  }
}

// Calls put(i, k, number) with the numbers of a block, free ones too.
template <typename Put>
__device__ void decode_block(const uint8_t* data, const Known& known, const Block& here,
                             int64_t levels_at, float* x, Put put) {
  const WireValues<float> levels{data + levels_at, 8 * (int64_t{blockIdx.x} + 1)};
  const float lowest = levels[2 * blockIdx.x], step = levels[2 * blockIdx.x + 1];
  if (known.sent) {
    for_each_own(here.size, [&](int i, int) { x[i] = 0; });
    __syncthreads();
  }
  for_each_level(data + here.byte, here.kept, lowest, step, known.bits, [&](int i, float number) {
    x[known.sent ? known.sent[here.list + i] : i] = number;
  });
  Turner(known, here).turn_back(x, put);
}

__global__ void __launch_bounds__(kThreads)
    decode(const uint8_t* data, const Known known, int64_t levels_at, float* values) {
  __shared__ float x[kLargestBlock];
  const Block here = known.blocks[blockIdx.x];
  values += here.value;
  decode_block(data, known, here, levels_at, x, [&](int i, int, float number) {
    const int value = held(known.free, i);
    if (value >= 0) values[value] = number;
  });
}

// Sums stay in registers for all ranks.
template <typename G, typename A>
__global__ void __launch_bounds__(kThreads)
    add(Several<const uint8_t*> ranks, const Known known, int64_t levels_at, Sum<G, A> sum) {
  __shared__ float x[kLargestBlock];
  const Block here = known.blocks[blockIdx.x];
  if (!sum.holds(here.value)) return;
  G* const out = sum.out + (here.value - sum.first);
  A sums[kEach];
  for_each_own(here.size, [&](int i, int k) {
    const int value = held(known.free, i);
    sums[k] = sum.afresh || value < 0 ? A(0) : static_cast<A>(out[value]);
  });
  for (int64_t rank = 0; rank < ranks.count; ++rank)
    decode_block(ranks[rank], known, here, levels_at, x,
                 [&](int, int k, float number) { sums[k] += sum.term(number); });
  for_each_own(here.size, [&](int i, int k) {
    const int value = held(known.free, i);
    if (value >= 0) out[value] = static_cast<G>(sums[k]);
  });
}

__global__ void __launch_bounds__(kThreads)
    put_rests(WireValues<float> exact, const Rest* rests, int64_t groups, float* values) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (thread / kWarp >= groups) return;
  const Rest rest = rests[thread / kWarp];
  const int64_t i = thread % kWarp;
  if (i < rest.count) values[rest.value + i] = exact[rest.exact + i];
}

template <typename G, typename A>
__global__ void __launch_bounds__(kThreads)
    add_rests(Several<const uint8_t*> ranks, const Rest* rests, int64_t groups, Sum<G, A> sum) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (thread / kWarp >= groups) return;
  const Rest rest = rests[thread / kWarp];
  const int64_t i = thread % kWarp;
  if (i >= rest.count || !sum.holds(rest.value)) return;
  G& out = sum.out[rest.value + i - sum.first];
  A total = sum.afresh ? A(0) : static_cast<A>(out);
  for (int64_t rank = 0; rank < ranks.count; ++rank)
    total += sum.term(WireValues<float>{ranks[rank] + 4 * rest.exact, 4 * rest.count}[i]);
  out = static_cast<G>(total);
}

// ------------------------------------------------------------------------------------ the host's

const int64_t* upload_if_any(const Device& device, const int64_t* host, int64_t count) {
  return host ? upload(device, host, count) : nullptr;
}

Known known_of(const Device& device, const Rotation& rotation, const Cut& cut) {
  return {upload(device, cut.blocks), upload_if_any(device, rotation.signs, rotation.groups),
          upload_if_any(device, rotation.free, kLargestBlock / kSmallestBlock),
          rotation.sent ? upload(device, cut.sent) : nullptr, rotation.bits};
}

}  // namespace

void rotated_encode(const Device& device, const float* values, const Rotation& host_rotation,
                    const Cut& cut, const Drawn& host_drawn, uint8_t* data) {
  auto* const numbers = reinterpret_cast<float*>(data);  // as aligned as all that is allocated
  const int64_t groups = host_rotation.groups;
  if (cut.left_over > 0)
    launch(device, ceil_div(groups * kWarp, kThreads), kThreads, take_rests, values,
           upload(device, cut.rests), groups, numbers);
  if (cut.blocks.empty()) return;
  launch(device, static_cast<int64_t>(cut.blocks.size()), kThreads, encode, values,
         known_of(device, host_rotation, cut), upload(device, host_drawn.noises, groups),
         host_drawn.unbiased, host_drawn.iterations, data, numbers + cut.left_over);
}

void rotated_decode(const Device& device, const uint8_t* data, const Rotation& host_rotation,
                    const Cut& cut, float* values) {
  const int64_t groups = host_rotation.groups;
  if (cut.left_over > 0)
    launch(device, ceil_div(groups * kWarp, kThreads), kThreads, put_rests,
           WireValues<float>{data, 4 * cut.left_over}, upload(device, cut.rests), groups, values);
  if (cut.blocks.empty()) return;
  const auto blocks = static_cast<int64_t>(cut.blocks.size());
  launch(device, blocks, kThreads, decode, data, known_of(device, host_rotation, cut),
         4 * cut.left_over, values);
}

template <typename G, typename A>
void rotated_add(const Device& device, const std::vector<const uint8_t*>& ranks,
                 const Rotation& host_rotation, const Cut& cut, const Sum<G, A>& sum) {
  const auto sent = several(device, ranks);
  const int64_t groups = host_rotation.groups;
  if (cut.left_over > 0)
    launch(device, ceil_div(groups * kWarp, kThreads), kThreads, add_rests<G, A>, sent,
           upload(device, cut.rests), groups, sum);
  if (cut.blocks.empty()) return;
  launch(device, static_cast<int64_t>(cut.blocks.size()), kThreads, add<G, A>, sent,
         known_of(device, host_rotation, cut), 4 * cut.left_over, sum);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using Ranks = std::vector<const uint8_t*>;
template void rotated_add(const Device&, const Ranks&, const Rotation&, const Cut&,
                          const Sum<float, float>&);
template void rotated_add(const Device&, const Ranks&, const Rotation&, const Cut&,
                          const Sum<BFloat16, float>&);
template void rotated_add(const Device&, const Ranks&, const Rotation&, const Cut&,
                          const Sum<Half, float>&);
template void rotated_add(const Device&, const Ranks&, const Rotation&, const Cut&,
                          const Sum<double, double>&);

}  // namespace ddp_compress::cuda
