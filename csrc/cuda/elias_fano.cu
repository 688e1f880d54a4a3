#include "../elias_fano_layout.h"
#include "../wire_format.h"
#include "grid.cuh"
#include "search.cuh"
#include "several.cuh"

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
// One kernel counts the set bits in every tile of the upper part; the next then knows the rank of
// each bit, which is where its position goes and where its low bits are. Both work on the tiles of
// all messages.

constexpr int kThreads = 512;
constexpr int kEach = 16;                // upper bits a thread
constexpr int kTile = kThreads * kEach;  // upper bits a block
static_assert(kTile <= UINT16_MAX + 1);

// The bits of bytes that start anywhere. They are read by aligned words, of which the first may
// hold bytes of others, too.
class Bits {
 public:
  __device__ Bits(const uint8_t* data, int64_t size)
      : words_(
            reinterpret_cast<const unsigned*>(reinterpret_cast<uintptr_t>(data) & ~uintptr_t{3})),
        skipped_(8 * static_cast<int>(reinterpret_cast<uintptr_t>(data) & 3)),
        end_(data + size) {}

  // The bits from `begin` to `end`, or the first 32 of them; 0 if there are none.
  __device__ unsigned between(int64_t begin, int64_t end) const {
    if (begin >= end) return 0;
    const int width = end - begin < 32 ? static_cast<int>(end - begin) : 32;
    const unsigned* word = words_ + ((begin + skipped_) >> 5);
    const int shift = static_cast<int>((begin + skipped_) & 31);
    uint64_t bits = load(word);
    if (shift + width > 32) bits |= uint64_t{load(word + 1)} << 32;
    return static_cast<unsigned>(bits >> shift & ((uint64_t{1} << width) - 1));
  }

 private:
  // The memory behind the last byte may be nobody's.
  __device__ unsigned load(const unsigned* word) const {
    if (reinterpret_cast<const uint8_t*>(word + 1) <= end_) return __ldg(word);
    const auto* const bytes = reinterpret_cast<const uint8_t*>(word);
    unsigned bits = 0;
    for (int b = 0; bytes + b < end_; ++b) bits |= unsigned{bytes[b]} << 8 * b;
    return bits;
  }

  const unsigned* words_;
  int skipped_;
  const uint8_t* end_;
};

// What all messages have in common.
struct Shape {
  Layout at;
  int64_t bytes, tiles, numel, k;
};

// What blocks find of a message.
struct Found {
  int worst;      // error
  unsigned done;  // tiles
};

// A tile of a message: what a block works on.
class Tile {
 public:
  __device__ Tile(const Several<Bytes>& messages, const Shape& shape)
      : message(blockIdx.x / shape.tiles),
        number(blockIdx.x % shape.tiles),
        shape_(shape),
        at_(shape.at),
        bits_(messages[message].data, messages[message].size) {}

  const int64_t message, number;

  // This thread's bits.
  __device__ unsigned upper() const {
    const int64_t begin = at_.upper + number * kTile + threadIdx.x * kEach;
    return bits_.between(begin, begin + kEach < at_.end ? begin + kEach : at_.end);
  }

  // Writes its positions, the first of which has rank `first`.
  __device__ void decode(int64_t first, int32_t* indices, int& error) const {
    __shared__ uint16_t places[kTile];  // of the set bits
    unsigned word = upper();
    int count;
    int next = exclusive_sum<kThreads>(__popc(word), count);
    for (; word != 0; word &= word - 1)
      places[next++] = static_cast<uint16_t>(threadIdx.x * kEach + __ffs(word) - 1);
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += kThreads)
      indices[first + i] =
          static_cast<int32_t>(position(first + i, number * kTile + places[i], error));
  }

  // True where an unused bit is set, as far as this thread sees: those behind the message, and the
  // low bits of slots from `rank` on.
  __device__ bool is_dirty(int64_t rank) const {
    unsigned bits = bits_.between(at_.end, 8 * shape_.bytes);
    for (int64_t i = rank * at_.low + (number * kThreads + threadIdx.x) * 32; i < at_.upper;
         i += shape_.tiles * kThreads * 32)
      bits |= bits_.between(i, at_.upper);
    return bits != 0;
  }

 private:
  __device__ unsigned low(int64_t rank) const {
    return bits_.between(rank * at_.low, (rank + 1) * at_.low);
  }

  // The position whose upper bit is the one at `place`; `error` gets what is wrong with it.
  __device__ int64_t position(int64_t rank, int64_t place, int& error) const {
    const unsigned mine = low(rank);
    const int64_t index = (place - rank) << at_.low | mine;
    if (index >= shape_.numel && error > kOutOfRange) error = kOutOfRange;
    // High bits never fall; they equal those before where the upper bits are neighbours.
    const int64_t bit = at_.upper + place;
    const bool same_high = place > 0 && bits_.between(bit - 1, bit) != 0;
    if (same_high && low(rank - 1) >= mine) error = kNotAscending;
    return index;
  }

  const Shape& shape_;
  const Layout& at_;
  const Bits bits_;
};

// Of several errors the one to be told is the least. That is the order of the CPU's checks: there
// are no unused slots, that could be dirty, where there are too many positions; and nothing else is
// looked for in a message that ends early.
static_assert(kDirtyPadding < kTooMany && kTooMany < kNotAscending && kNotAscending < kOutOfRange &&
              kOutOfRange < kTruncated);

__device__ void clear(int32_t* indices, int64_t begin, int64_t end, int64_t step) {
  for (int64_t i = begin; i < end; i += step) indices[i] = kUnused;
}

// `counts` has a place for each tile.
__global__ void __launch_bounds__(kThreads)
    count_bits(Several<Bytes> messages, Shape shape, int64_t* counts, Found* found) {
  const Tile tile(messages, shape);
  const bool complete = messages[tile.message].size >= shape.bytes;
  const int64_t count = sum_of_block<kThreads>(complete ? __popc(tile.upper()) : 0);
  if (threadIdx.x > 0) return;
  counts[blockIdx.x] = count;
  if (tile.number == 0) found[tile.message] = {complete ? 0 : static_cast<int>(kTruncated), 0};
}

__global__ void __launch_bounds__(kThreads)
    decode(Several<Bytes> messages, Shape shape, const int64_t* counts, Found* found,
           int32_t* indices, int64_t* status, int64_t stride) {
  const Tile tile(messages, shape);
  Found& mine = found[tile.message];
  int32_t* const slots = indices + tile.message * shape.k;
  if (messages[tile.message].size >= shape.bytes) {
    const int64_t* const own = counts + tile.message * shape.tiles;
    int64_t before = 0, all = 0;
    for (int64_t i = threadIdx.x; i < shape.tiles; i += kThreads) {
      all += own[i];
      if (i < tile.number) before += own[i];
    }
    before = sum_of_block<kThreads>(before);
    all = sum_of_block<kThreads>(all);
    int error = 0;
    if (all > shape.k) {
      error = kTooMany;
    } else {
      tile.decode(before, slots, error);
      clear(slots, all + tile.number * kThreads + threadIdx.x, shape.k, shape.tiles * kThreads);
    }
    if (tile.is_dirty(all < shape.k ? all : shape.k)) error = kDirtyPadding;
    if (error != 0) atomicMin(&mine.worst, error);
  }

  // The last block to come here knows of all errors.
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&mine.done, 1u) + 1 == shape.tiles;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const int error = __ldcg(&mine.worst);
  if (error != 0) clear(slots, threadIdx.x, shape.k, kThreads);
  if (threadIdx.x == 0) status[tile.message * stride] = error != 0 ? error : shape.bytes;
}

}  // namespace

void elias_fano_encode(const Device& device, const int32_t* indices, int64_t count, int64_t numel,
                       int64_t k, uint8_t* out) {
  const int64_t bytes = elias_fano_size(numel, k);
  launch(device, ceil_div(bytes, kEncodeThreads * kWord / 8), kEncodeThreads, encode, indices,
         std::min(count, k), elias_fano_layout(numel, k), out, bytes);
}

void elias_fano_decode(const Device& device, const std::vector<Bytes>& messages, int64_t numel,
                       int64_t k, int32_t* indices, int64_t* status, int64_t stride) {
  const Layout at = elias_fano_layout(numel, k);
  const int64_t tiles = std::max<int64_t>(ceil_div(at.end - at.upper, kTile), 1);
  const Shape shape{at, elias_fano_size(numel, k), tiles, numel, k};
  const auto count = static_cast<int64_t>(messages.size());
  const auto given = several(device, messages);
  auto* counts = device.array<int64_t>(count * tiles);
  auto* found = device.array<Found>(count);
  launch(device, count * tiles, kThreads, count_bits, given, shape, counts, found);
  launch(device, count * tiles, kThreads, decode, given, shape, counts, found, indices, status,
         stride);
}

}  // namespace ddp_compress::cuda
