#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "../kernels.h"

namespace ddp_compress {

namespace {

template <typename A>
uint8_t signs_of(const A* values, int64_t count) {
  unsigned byte = 0;
  for (int64_t i = 0; i < count; ++i) byte |= unsigned{std::signbit(values[i])} << i;
  return static_cast<uint8_t>(byte);
}

// For every half of a byte, four words: a sign bit where its bit is set.
constexpr auto kTurns = [] {
  std::array<std::array<uint32_t, 4>, 16> turns{};
  for (uint32_t half = 0; half < 16; ++half)
    for (int i = 0; i < 4; ++i) turns[half][i] = (half >> i & 1) << 31;
  return turns;
}();

void turn(float scale, unsigned byte, float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = byte >> i & 1 ? -scale : scale;
}

void turn_eight(float scale, unsigned byte, float* values) {
  const auto bits = std::bit_cast<uint32_t>(scale);
  for (const unsigned half : {byte & 15, byte >> 4}) {
    std::array<uint32_t, 4> turned;
    for (int i = 0; i < 4; ++i) turned[i] = bits ^ kTurns[half][i];
    std::memcpy(values, turned.data(), sizeof(turned));
    values += 4;
  }
}

}  // namespace

template <typename A>
void sign_encode(const A* values, const int64_t* bounds, int64_t segments, int64_t block,
                 uint8_t* bits, float* scales) {
  for (int64_t s = 0; s < segments; ++s) {
    const int64_t numel = bounds[s + 1] - bounds[s];
    for (int64_t i = 0; i < numel; i += block)
      *scales++ = static_cast<float>(exact_mean(values + i, std::min(block, numel - i), true));
    const A* const end = values + numel;
    for (; end - values >= 8; values += 8) *bits++ = signs_of(values, 8);
    if (values < end) *bits++ = signs_of(values, end - values);
    values = end;
  }
}

void sign_decode(const uint8_t* bits, const float* scales, const int64_t* bounds, int64_t segments,
                 int64_t block, float* values) {
  for (int64_t s = 0; s < segments; ++s) {
    for (int64_t left = bounds[s + 1] - bounds[s]; left > 0; left -= block) {
      const float scale = *scales++;
      float* const end = values + std::min(block, left);
      for (; end - values >= 8; values += 8) turn_eight(scale, *bits++, values);
      if (values < end) turn(scale, *bits++, values, end - values);
      values = end;
    }
  }
}

template void sign_encode(const float*, const int64_t*, int64_t, int64_t, uint8_t*, float*);
template void sign_encode(const double*, const int64_t*, int64_t, int64_t, uint8_t*, float*);

}  // namespace ddp_compress
