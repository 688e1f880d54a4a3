#include "../elias_fano_layout.h"
#include "../kernels.h"
#include "bit_stream.h"

namespace ddp_compress {

void elias_fano_encode(const int32_t* indices, int64_t count, int64_t numel, int64_t k,
                       uint8_t* out) {
  const EliasFanoLayout at = elias_fano_layout(numel, k);
  BitWriter writer(out);
  for (int64_t i = 0; i < count; ++i) {
    writer.put(static_cast<uint64_t>(indices[i]) & low_mask(at.low), at.low);
  }
  writer.repeat(false, at.upper - count * at.low);

  int64_t written = 0;
  for (int64_t i = 0; i < count; ++i) {
    int64_t zeros = i + (indices[i] >> at.low) - written;
    written += zeros + 1;
    for (; zeros > 62; zeros -= 62) writer.put(0, 62);
    writer.put(uint64_t{1} << zeros, static_cast<int>(zeros) + 1);
  }
  writer.repeat(false, at.end - at.upper - written);
  writer.finish();
}

// The checks come in the order of the DecodeErrors below; reference/elias_fano.py keeps it too.
int64_t elias_fano_decode(const uint8_t* data, int64_t size, int64_t numel, int64_t k,
                          int32_t* indices) {
  const EliasFanoLayout at = elias_fano_layout(numel, k);
  const int64_t bytes = bytes_for(at.end);
  if (size < bytes) return kTruncated;
  const BitReader in(data, bytes);
  if (in.bits_at(at.end) != 0) return kDirtyPadding;

  int64_t count = 0;
  int64_t previous = -1;
  bool ascending = true;
  for (int64_t start = at.upper & ~int64_t{7}; start < at.end; start += 64) {
    uint64_t word = in.word_at(start >> 3);
    if (start < at.upper) word &= ~low_mask(at.upper - start);
    for (; word != 0; word &= word - 1) {
      if (count == k) return kTooMany;
      const int64_t high = start + std::countr_zero(word) - at.upper - count;
      const int64_t low = static_cast<int64_t>(in.bits_at(count * at.low) & low_mask(at.low));
      const int64_t index = high << at.low | low;
      ascending &= index > previous;
      previous = index;
      indices[count++] = static_cast<int32_t>(index);
    }
  }
  for (int64_t bit = count * at.low; bit < at.upper; bit += BitReader::kPeek) {
    const int64_t unused = std::min<int64_t>(at.upper - bit, BitReader::kPeek);
    if ((in.bits_at(bit) & low_mask(unused)) != 0) return kDirtyPadding;
  }
  if (!ascending) return kNotAscending;
  if (previous >= numel) return kOutOfRange;
  return count;
}

}  // namespace ddp_compress
