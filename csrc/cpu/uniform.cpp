#include "../uniform.h"

#include <algorithm>

#include "../kernels.h"
#include "bit_stream.h"
#include "simd.h"

namespace ddp_compress {
namespace {

constexpr int64_t kTile = 64;

DDP_COMPRESS_INLINE Levels levels_of(const float* values, int64_t count, int last) {
  if (count == 0) return {};
  int32_t smallest = INT32_MAX, largest = INT32_MIN;
  for (int64_t i = 0; i < count; ++i) {
    smallest = std::min(smallest, ordered(values[i]));
    largest = std::max(largest, ordered(values[i]));
  }
  return levels_between(smallest, largest, last);
}

// The codes of up to kTile numbers, of which `first` is the block's first one.
DDP_COMPRESS_INLINE void codes_of(const float* values, int64_t first, int64_t count, Levels levels,
                                  uint64_t salt, int last, uint8_t* codes) {
  float noises[kTile];
  for (int64_t at = 0; at < count; at += kDraws) {
    const uint64_t word = random_word(salt, static_cast<uint64_t>((first + at) / kDraws));
    for (int i = 0; i < kDraws; ++i) noises[at + i] = noise(word, i);
  }
  for (int64_t i = 0; i < count; ++i)
    codes[i] = static_cast<uint8_t>(code_of(values[first + i], levels, noises[i], last));
}

DDP_COMPRESS_INLINE void encode(const float* values, int64_t count, uint64_t salt, int bits,
                                uint8_t* out, Levels& levels) {
  const int last = (1 << bits) - 1;
  levels = levels_of(values, count, last);
  BitWriter writer(out);
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t here = std::min(kTile, count - first);
    uint8_t codes[kTile] = {};
    if (is_step(levels.step)) codes_of(values, first, here, levels, salt, last, codes);
    for (int64_t i = 0; i < here; ++i) writer.put(codes[i], bits);
  }
  writer.finish();
}

#ifdef DDP_COMPRESS_AVX2
DDP_COMPRESS_TARGET_AVX2 void encode_avx2(const float* values, int64_t count, uint64_t salt,
                                          int bits, uint8_t* out, Levels& levels) {
  encode(values, count, salt, bits, out, levels);
}
#endif

}  // namespace

void uniform_encode(const float* values, const int64_t* bounds, const int64_t* salts,
                    int64_t blocks, int bits, uint8_t* codes, float* levels) {
  auto one = encode;
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) one = encode_avx2;
#endif
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t count = bounds[b + 1] - bounds[b];
    Levels found;
    one(values + bounds[b], count, static_cast<uint64_t>(salts[b]), bits, codes, found);
    *levels++ = found.lowest;
    *levels++ = found.step;
    codes += bytes_for(bits * count);
  }
}

void uniform_decode(const uint8_t* codes, const float* levels, const int64_t* bounds,
                    int64_t blocks, int bits, float* values) {
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t count = bounds[b + 1] - bounds[b], bytes = bytes_for(bits * count);
    const float lowest = *levels++, step = *levels++;
    BitReader reader(codes, bytes);
    for (int64_t i = 0; i < count; ++i)
      *values++ = lowest + static_cast<float>(reader.take(bits)) * step;
    codes += bytes;
  }
}

}  // namespace ddp_compress
