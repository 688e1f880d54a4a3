// Golomb-Rice codes, by one kernel in four phases:
//   1. For each parameter, and each bit that a gap may have, count the gaps that have it set.
//   2. These counts tell the cost of every b; choose the best, and sum the size of the message.
//   3. Sum the lengths of each share's codes, so that it is known where those of the next start.
//   4. Write the codes.
// Phases find gaps anew from the positions, which is cheaper than to keep them.
//
// The message is written to scratch memory, which has whole words and room for the longest there
// may be. The host waits for the size alone, and copies so many bytes.
#include <bit>

#include "../wire_format.h"
#include "grid.cuh"
#include "search.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kParameterBits = 5;
constexpr int kMostCodeBits = 32;  // on average: with b = 31 every code has as many

// A gap has 31 bits. The last plane counts the gaps themselves.
constexpr int kPlanes = 32;
constexpr unsigned kGapMask = INT32_MAX;
constexpr unsigned kCounted = ~kGapMask;

// Where a parameter starts: its first position, and how many bits the counts of all before it take.
struct Section {
  int32_t start, header;
};

struct Message {
  Turns::Counters* turns;
  const int32_t* indices;
  int64_t count;            // slots
  const Section* sections;  // one more than there are parameters, for where the last ends
  int64_t params;
  unsigned* planes;          // [params][kPlanes]: gaps that have the bit set
  int* parameters;           // [params]: b
  unsigned long long* bits;  // all of the message
  int64_t* lengths;          // [shares]: bits of their codes
  unsigned* words;           // the message
};

// The code of one slot. The same object serves slot after slot: then it often knows the parameter.
class Code {
 public:
  bool used = false;   // if not, nothing below is meant
  bool first = false;  // of its parameter
  unsigned gap = 0;
  int64_t param = 0;

  __device__ void find(const Message& message, int64_t slot, int64_t slots) {
    used = false;
    if (slot >= slots) return;
    const int32_t position = message.indices[slot];
    if (position < 0 || position >= message.sections[message.params].start) return;
    used = true;
    if (position < message.sections[param].start || position >= message.sections[param + 1].start)
      param = param_of(position, message);
    const int64_t start = message.sections[param].start;
    const int64_t next = slot == 0 ? 0 : int64_t{message.indices[slot - 1]} + 1;
    first = next <= start;
    gap = static_cast<unsigned>(position - (first ? start : next)) & kGapMask;
  }

  // With the parameter's b, where it is the first.
  __device__ int64_t length(int b) const {
    return int64_t{gap >> b} + 1 + b + (first ? kParameterBits : 0);
  }

 private:
  // The last that starts at the position or before: the one that is not empty.
  static __device__ int64_t param_of(int32_t position, const Message& message) {
    return last_up_to(position, int64_t{0}, message.params,
                      [&](int64_t i) { return message.sections[i].start; });
  }
};

// Of the warp's 32 x 32 bits: lane i gets bit i of every lane.
__device__ unsigned transpose(unsigned bits) {
  unsigned mask = 0x0000FFFF;
  for (int width = 16; width > 0; width /= 2, mask ^= mask << width) {
    const unsigned other = __shfl_xor_sync(kAllLanes, bits, width);
    bits = threadIdx.x & width ? (bits & ~mask) | (other & ~mask) >> width
                               : (bits & mask) | (other & mask) << width;
  }
  return bits;
}

__device__ void count_planes(const Message& message, unsigned share) {
  __shared__ unsigned ours[kPlanes];  // of the share's first parameter, which may well be the only
  const int lane = threadIdx.x % kWarp;
  if (threadIdx.x < kPlanes) ours[threadIdx.x] = 0;
  __syncthreads();

  const Share slots(message.count, share);
  Code code;
  code.find(message, slots.begin, slots.end);
  const int64_t own = code.param;
  for (int64_t tile = slots.begin; tile < slots.end; tile += kThreads) {
    code.find(message, tile + threadIdx.x, slots.end);
    unsigned left = __ballot_sync(kAllLanes, code.used);
    while (left != 0) {
      const int64_t param = __shfl_sync(kAllLanes, code.param, __ffs(left) - 1);
      const bool member = code.used && code.param == param;
      left &= ~__ballot_sync(kAllLanes, member);
      const unsigned plane = transpose(member ? code.gap | kCounted : 0);
      unsigned* counts = param == own ? ours : message.planes + param * kPlanes;
      atomicAdd(counts + lane, static_cast<unsigned>(__popc(plane)));
    }
  }
  __syncthreads();
  if (threadIdx.x < kPlanes && ours[threadIdx.x] != 0)
    atomicAdd(message.planes + own * kPlanes + threadIdx.x, ours[threadIdx.x]);
}

// The least b of least cost. Each lane has the cost of one.
__device__ void choose(const Message& message, unsigned share) {
  const int lane = threadIdx.x % kWarp;
  if (share == 0 && threadIdx.x == 0)
    atomicAdd(message.bits,
              static_cast<unsigned long long>(message.sections[message.params].header));
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarp);
  for (int64_t param = (int64_t{share} * kThreads + threadIdx.x) / kWarp; param < message.params;
       param += warps) {
    const unsigned plane = __ldcg(message.planes + param * kPlanes + lane);
    const unsigned count = __shfl_sync(kAllLanes, plane, kPlanes - 1);
    if (count == 0) continue;
    unsigned long long ones = 0;  // of all gaps, shifted down by `lane`
    for (int bit = kPlanes - 2; bit >= 0; --bit) {
      const unsigned set = __shfl_sync(kAllLanes, plane, bit);
      if (bit >= lane) ones = 2 * ones + set;
    }
    const unsigned long long cost = ones + static_cast<unsigned long long>(count) * (lane + 1);
    const unsigned long long least = combine_lanes(cost, smaller<unsigned long long>);
    const unsigned best = __ballot_sync(kAllLanes, cost == least);
    if (lane == 0) {
      message.parameters[param] = __ffs(best) - 1;
      atomicAdd(message.bits, kParameterBits + least);
    }
  }
}

__device__ void sum_lengths(const Message& message, unsigned share) {
  const Share slots(message.count, share);
  Code code;
  int64_t length = 0;
  for (int64_t slot = slots.begin + threadIdx.x; slot < slots.end; slot += kThreads) {
    code.find(message, slot, slots.end);
    if (code.used) length += code.length(message.parameters[code.param]);
  }
  length = sum_of_block<kThreads>(length);
  if (threadIdx.x == 0) message.lengths[share] = length;
}

// Sets bits of words that are zero.
class Writer {
 public:
  __device__ Writer(unsigned* words, int64_t count) : words_(words), count_(count) {}

  __device__ void put(int64_t bit, uint64_t value) {
    const int shift = static_cast<int>(bit % 32);
    const uint64_t low = value << shift;
    set(bit / 32, static_cast<unsigned>(low));
    set(bit / 32 + 1, static_cast<unsigned>(low >> 32));
    if (shift > 0) set(bit / 32 + 2, static_cast<unsigned>(value >> (64 - shift)));
  }

  // Ones, by all lanes of a warp.
  __device__ void fill(int64_t begin, int64_t count) {
    const int64_t end = begin + count;
    for (int64_t word = begin / 32 + threadIdx.x % kWarp; 32 * word < end; word += kWarp) {
      unsigned ones = ~0u;
      if (begin > 32 * word) ones &= ~0u << (begin - 32 * word);
      if (end < 32 * (word + 1)) ones &= ~0u >> (32 * (word + 1) - end);
      set(word, ones);
    }
  }

 private:
  // Positions that do not ascend may lead anywhere.
  __device__ void set(int64_t word, unsigned bits) {
    if (bits != 0 && word < count_) atomicOr(words_ + word, bits);
  }

  unsigned* words_;
  int64_t count_;
};

__device__ uint64_t ones_below(int bit) { return (uint64_t{1} << bit) - 1; }

// Writes one code, whose length is summed up to `bit`, after what comes before it in its parameter.
// All lanes of a warp come here: together they write long runs of ones, which can be any length.
__device__ void write(const Message& message, const Code& code, int b, int64_t bit,
                      Writer& writer) {
  constexpr unsigned kLongRun = 32;  // with the zero and 31 low bits, that many fill 64
  unsigned ones = 0;
  if (code.used) {
    const int32_t header = message.sections[code.param].header;
    const int32_t width = message.sections[code.param + 1].header - header;
    if (code.first) {
      const unsigned count = message.planes[code.param * kPlanes + kPlanes - 1];
      writer.put(bit + header, count | static_cast<uint64_t>(b) << width);
      bit += kParameterBits;
    }
    bit += header + width;
    ones = code.gap >> b;
  }
  unsigned runs = __ballot_sync(kAllLanes, ones > kLongRun);
  for (; runs != 0; runs &= runs - 1) {
    const int lane = __ffs(runs) - 1;
    writer.fill(__shfl_sync(kAllLanes, bit, lane), __shfl_sync(kAllLanes, ones, lane));
  }
  if (!code.used) return;
  if (ones > kLongRun) {
    bit += ones;
    ones = 0;
  }
  writer.put(bit, ones_below(ones) | (code.gap & ones_below(b)) << (ones + 1));
}

__device__ void write_all(const Message& message, unsigned share, Writer writer) {
  const Share slots(message.count, share);
  int64_t bit = 0;
  for (unsigned s = threadIdx.x; s < share; s += kThreads) bit += message.lengths[s];
  bit = sum_of_block<kThreads>(bit);
  Code code;
  for (int64_t tile = slots.begin; tile < slots.end; tile += kThreads) {
    code.find(message, tile + threadIdx.x, slots.end);
    const int b = code.used ? message.parameters[code.param] : 0;
    int64_t length;
    const int64_t before = exclusive_sum<kThreads>(code.used ? code.length(b) : int64_t{0}, length);
    write(message, code, b, bit + before, writer);
    bit += length;
  }
}

__global__ void __launch_bounds__(kThreads) encode(Message message) {
  Turns turns(message.turns);
  turns.all([&](unsigned share) { count_planes(message, share); });
  turns.all([&](unsigned share) { choose(message, share); });

  const int64_t words = static_cast<int64_t>(*message.bits + 31) / 32;
  turns.all([&](unsigned share) {
    const Share own(words, share);
    for (int64_t word = own.begin + threadIdx.x; word < own.end; word += kThreads)
      message.words[word] = 0;
    sum_lengths(message, share);
  });
  turns.last([&](unsigned share) { write_all(message, share, Writer(message.words, words)); });
}

}  // namespace

void golomb_encode(const Device& device, const int32_t* indices, int64_t count,
                   const int64_t* host_bounds, int64_t params,
                   const std::function<uint8_t*(int64_t bytes)>& output) {
  std::vector<Section> sections{{0, 0}};
  for (int64_t p = 0; p < params; ++p) {
    const auto numel = static_cast<uint64_t>(host_bounds[p + 1] - host_bounds[p]);
    const auto width = static_cast<int32_t>(std::bit_width(numel));
    sections.push_back({static_cast<int32_t>(host_bounds[p + 1]), sections.back().header + width});
  }
  const int64_t most_bits =
      sections.back().header + params * kParameterBits + count * kMostCodeBits;
  const int64_t blocks = ceil_div(count, kThreads);

  // What starts as zero: the bits of all, the counters, the planes.
  static_assert(sizeof(Turns::Counters) == sizeof(unsigned long long));
  const int64_t zeros = 2 + params * kPlanes / 2;
  auto* bits = device.array<unsigned long long>(zeros);
  fill_zero(device, bits, zeros);
  auto* turns = reinterpret_cast<Turns::Counters*>(bits + 1);
  auto* planes = reinterpret_cast<unsigned*>(bits + 2);
  auto* words = device.array<unsigned>(ceil_div(most_bits, 32));
  launch_in_turns(device, blocks, kThreads, encode,
                  Message{turns, indices, count, upload(device, sections), params, planes,
                          device.array<int>(params), bits,
                          device.array<int64_t>(std::max<int64_t>(blocks, 1)), words});

  unsigned long long size = 0;
  check(cudaMemcpyAsync(&size, bits, sizeof(size), cudaMemcpyDeviceToHost, stream_of(device)));
  check(cudaStreamSynchronize(stream_of(device)));
  const int64_t bytes = ceil_div(static_cast<int64_t>(size), 8);
  uint8_t* out = output(bytes);
  if (bytes == 0) return;
  check(cudaMemcpyAsync(out, words, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                        stream_of(device)));
}

}  // namespace ddp_compress::cuda
