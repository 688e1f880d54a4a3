#include "../elias_fano_layout.h"
#include "../wire_format.h"
#include "block_sums.cuh"
#include "search.cuh"

namespace ddp_compress::cuda {
namespace {

using Layout = EliasFanoLayout;

// ------------------------------------------------------------------------------------- encode
//
// A thread makes one word of the message from all positions that have bits in it: so nothing is
// cleared before, and none waits for another.

constexpr int kEncodeThreads = 256;
constexpr int kWord = 32;  // bits

// The low bits that lie in the word from bit `begin` on.
__device__ unsigned low_bits_in_word(const int32_t* indices, int64_t count, int low,
                                     int64_t begin) {
  const unsigned mask = (1u << low) - 1;
  unsigned word = 0;
  for (int64_t i = begin / low; i < count && i * low < begin + kWord; ++i) {
    const int32_t index = indices[i];
    const unsigned field = index == kUnused ? 0 : static_cast<unsigned>(index) & mask;
    const int64_t shift = i * low - begin;
    word |= shift >= 0 ? field << shift : field >> -shift;
  }
  return word;
}

// The bit of the upper part that the i-th slot sets: these ascend, and unused slots set none.
__device__ int64_t upper_bit(const int32_t* indices, int64_t i, int low) {
  const int32_t index = indices[i];
  return index == kUnused ? INT64_MAX : i + (index >> low);
}

// The upper bits that lie in the word from bit `begin` of the upper part on, which is negative
// where the word starts with low bits.
__device__ unsigned upper_bits_in_word(const int32_t* indices, int64_t count, int low,
                                       int64_t begin) {
  const int64_t first =
      first_from(begin, int64_t{0}, count, [&](int64_t i) { return upper_bit(indices, i, low); });
  unsigned word = 0;
  for (int64_t i = first; i < count && i < first + kWord; ++i) {
    const int64_t bit = upper_bit(indices, i, low) - begin;
    if (bit < 0 || bit >= kWord) break;
    word |= 1u << bit;
  }
  return word;
}

// `out` is aligned to words, but may end inside one.
__global__ void __launch_bounds__(kEncodeThreads)
    encode(const int32_t* indices, int64_t count, Layout at, uint8_t* out, int64_t bytes) {
  const int64_t first = (int64_t{blockIdx.x} * kEncodeThreads + threadIdx.x) * (kWord / 8);
  if (first >= bytes) return;
  const int64_t begin = 8 * first;
  unsigned word = 0;
  if (begin < at.upper) word |= low_bits_in_word(indices, count, at.low, begin);
  if (begin + kWord > at.upper)
    word |= upper_bits_in_word(indices, count, at.low, begin - at.upper);
  if (first + kWord / 8 <= bytes) {
    *reinterpret_cast<unsigned*>(out + first) = word;
  } else {
    for (int64_t byte = first; byte < bytes; ++byte, word >>= 8)
      out[byte] = static_cast<uint8_t>(word);
  }
}

// ------------------------------------------------------------------------------------- decode
//
// Blocks count the set bits in their share of the upper part, wait for each other, and then know
// the rank of each bit, which is where its position goes and where its low bits are.

constexpr int kThreads = 512;
constexpr int kEach = 16;                // upper bits a thread
constexpr int kTile = kThreads * kEach;  // upper bits that a block works on at once
static_assert(kTile <= UINT16_MAX + 1);

// The bits of bytes that start anywhere. They are read by aligned words, of which the first and
// the last may hold bytes of others, too.
class Bits {
 public:
  explicit Bits(const uint8_t* data)
      : words_(
            reinterpret_cast<const unsigned*>(reinterpret_cast<uintptr_t>(data) & ~uintptr_t{3})),
        skipped_(8 * static_cast<int>(reinterpret_cast<uintptr_t>(data) & 3)) {}

  // The bits from `begin` to `end`, or the first 32 of them; 0 if there are none.
  __device__ unsigned between(int64_t begin, int64_t end) const {
    if (begin >= end) return 0;
    const int width = end - begin < 32 ? static_cast<int>(end - begin) : 32;
    const unsigned* word = words_ + ((begin + skipped_) >> 5);
    const int shift = static_cast<int>((begin + skipped_) & 31);
    uint64_t bits = __ldg(word);
    if (shift + width > 32) bits |= uint64_t{__ldg(word + 1)} << 32;
    return static_cast<unsigned>(bits >> shift & ((uint64_t{1} << width) - 1));
  }

 private:
  const unsigned* words_;
  int skipped_;
};

struct Message {
  Bits bits;
  Layout at;
  int64_t bytes, tiles, numel, k;

  __device__ unsigned low(int64_t rank) const {
    return bits.between(rank * at.low, (rank + 1) * at.low);
  }

  // This thread's bits of a tile.
  __device__ unsigned upper(int64_t tile) const {
    const int64_t begin = at.upper + tile * kTile + threadIdx.x * kEach;
    return bits.between(begin, begin + kEach < at.end ? begin + kEach : at.end);
  }

  // The position whose upper bit is the one at `place`; `error` gets what is wrong with it.
  __device__ int64_t position(int64_t rank, int64_t place, int& error) const {
    const unsigned mine = low(rank);
    const int64_t index = (place - rank) << at.low | mine;
    if (index >= numel && error > kOutOfRange) error = kOutOfRange;
    // High bits never fall; they equal those before where the upper bits are neighbours.
    const int64_t bit = at.upper + place;
    const bool same_high = place > 0 && bits.between(bit - 1, bit) != 0;
    if (same_high && low(rank - 1) >= mine) error = kNotAscending;
    return index;
  }
};

// Of several errors the one to be told is the least. That is the order of the CPU's checks: there
// are no unused slots, that could be dirty, where there are too many positions.
static_assert(kDirtyPadding < kTooMany && kTooMany < kNotAscending && kNotAscending < kOutOfRange);

// Writes the positions of one tile, the first of which has rank `first`; returns how many.
__device__ int64_t decode_tile(const Message& message, int64_t tile, int64_t first,
                               int32_t* indices, int& error) {
  __shared__ uint16_t places[kTile];  // of the tile's set bits
  unsigned word = message.upper(tile);
  int count;
  int next = exclusive_sum<kThreads>(__popc(word), count);
  for (; word != 0; word &= word - 1)
    places[next++] = static_cast<uint16_t>(threadIdx.x * kEach + __ffs(word) - 1);
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += kThreads)
    indices[first + i] =
        static_cast<int32_t>(message.position(first + i, tile * kTile + places[i], error));
  return count;  // the next exclusive_sum waits for all, before anyone writes places again
}

__device__ void clear(int32_t* indices, int64_t begin, int64_t end) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = begin + int64_t{blockIdx.x} * kThreads + threadIdx.x; i < end; i += threads)
    indices[i] = kUnused;
}

// True where the low bits of slots from `rank` on are not all zero, as far as this thread sees.
__device__ bool dirty_from(const Message& message, int64_t rank) {
  const int64_t step = int64_t{gridDim.x} * kThreads * 32;
  int64_t begin = rank * message.at.low + (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 32;
  unsigned bits = 0;
  for (; begin < message.at.upper; begin += step)
    bits |= message.bits.between(begin, message.at.upper);
  return bits != 0;
}

// `counts` has a place for each block.
__global__ void __launch_bounds__(kThreads)
    decode(Message message, int64_t* counts, int* worst, int32_t* indices, int64_t* status) {
  const Share tiles(message.tiles);
  int64_t mine = 0;
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) mine += __popc(message.upper(tile));
  mine = sum_of_block<kThreads>(mine);
  if (threadIdx.x == 0) counts[blockIdx.x] = mine;
  if (blockIdx.x == 0 && threadIdx.x == 0) *worst = 0;
  wait_for_grid();

  int error = 0;
  const BlockSums sums = sum_blocks<kThreads>(counts);
  if (sums.total > message.k) {
    error = kTooMany;
  } else {
    int64_t rank = sums.before;
    for (int64_t tile = tiles.begin; tile < tiles.end; ++tile)
      rank += decode_tile(message, tile, rank, indices, error);
    clear(indices, sums.total, message.k);
    if (dirty_from(message, sums.total)) error = kDirtyPadding;
  }
  if (message.bits.between(message.at.end, 8 * message.bytes) != 0) error = kDirtyPadding;
  if (error != 0) atomicMin(worst, error);
  wait_for_grid();

  error = __ldcg(worst);
  if (error != 0) clear(indices, 0, message.k);
  if (blockIdx.x == 0 && threadIdx.x == 0) *status = error != 0 ? error : message.bytes;
}

__global__ void refuse(int64_t k, int32_t* indices, int64_t* status) {
  clear(indices, 0, k);
  if (blockIdx.x == 0 && threadIdx.x == 0) *status = kTruncated;
}

}  // namespace

void elias_fano_encode(const Device& device, const int32_t* indices, int64_t count, int64_t numel,
                       int64_t k, uint8_t* out) {
  const int64_t bytes = elias_fano_size(numel, k);
  launch(device, ceil_div(bytes, kEncodeThreads * kWord / 8), kEncodeThreads, encode, indices,
         std::min(count, k), elias_fano_layout(numel, k), out, bytes);
}

void elias_fano_decode(const Device& device, const uint8_t* data, int64_t size, int64_t numel,
                       int64_t k, int32_t* indices, int64_t* status) {
  const int64_t bytes = elias_fano_size(numel, k);
  if (size < bytes) {
    launch(device, ceil_div(k, kThreads), kThreads, refuse, k, indices, status);
    return;
  }
  const Layout at = elias_fano_layout(numel, k);
  const int64_t tiles = ceil_div(at.end - at.upper, kTile);
  auto* counts = device.array<int64_t>(std::max<int64_t>(tiles, 1));
  launch_together(device, tiles, kThreads, decode, Message{Bits(data), at, bytes, tiles, numel, k},
                  counts, device.array<int>(1), indices, status);
}

}  // namespace ddp_compress::cuda
