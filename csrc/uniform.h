// Codes of evenly spaced levels, and the noise that rounds to them.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "tie_hash.h"

namespace ddp_compress {

// A block's levels: code c stands for lowest + c * step.
struct Levels {
  float lowest, step;
};

constexpr int kDraws = 4;  // numbers that one random word rounds, 16 bits for each

// Noise within (0, 1), of 2**-17, 3 * 2**-17, ..., for 16 bits.
DDP_COMPRESS_HD inline float noise(uint16_t bits) {
  return (static_cast<float>(bits) + 0.5f) * 0x1p-16f;
}

// An integer that orders floats, -0 below 0 and what is not finite outside all else; and its own
// inverse.
DDP_COMPRESS_HD inline int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & INT32_MAX); }
DDP_COMPRESS_HD inline int32_t ordered(float x) { return ordered(__builtin_bit_cast(int32_t, x)); }

// From the smallest and the largest of a block, as `ordered` integers; NaN if one is not finite.
DDP_COMPRESS_HD inline Levels levels_between(int32_t smallest, int32_t largest, int last) {
  const float lowest = __builtin_bit_cast(float, ordered(smallest));
  const float highest = __builtin_bit_cast(float, ordered(largest));
  const float zero = (lowest - lowest) + (highest - highest);  // or NaN
  return {lowest + zero, (highest - lowest) / static_cast<float>(last) + zero};
}

// Whether numbers of a block can be told apart: the step is neither 0 nor infinite nor NaN.
DDP_COMPRESS_HD inline bool is_step(float step) { return step > 0.0f && step - step == 0.0f; }

// The code of a number of the block: the one below or the one above it, as the noise decides; on
// average the number itself.
DDP_COMPRESS_HD inline int code_of(float value, Levels levels, float noise, int last) {
  const float steps = (value - levels.lowest) / levels.step;
  const int below = static_cast<int>(steps);
  const int code = below + (steps - static_cast<float>(below) + noise >= 1.0f);
  return code < last ? code : last;
}

}  // namespace ddp_compress
