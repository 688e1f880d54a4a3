#include <bit>
#include <cmath>

#include "../csrc/kernels.h"
#include "target.h"

namespace ddp_compress::fuzz {
namespace {

struct Shape {
  std::vector<int64_t> bounds, salts;
  int bits;
  size_t bytes = 0;  // of the codes

  int64_t blocks() const { return std::ssize(bounds) - 1; }
  size_t levels() const { return 2 * static_cast<size_t>(blocks()); }
  int64_t bytes_of(int64_t b) const { return (bits * (bounds[b + 1] - bounds[b]) + 7) / 8; }
};

Shape shape_of(uint32_t seed) {
  Random random(seed);
  Shape shape{random.bounds(random.size(2000), 10), {}, static_cast<int>(1 + random.below(8))};
  for (int64_t b = 0; b < shape.blocks(); ++b) {
    shape.salts.push_back(static_cast<int64_t>(random()));
    shape.bytes += static_cast<size_t>(shape.bytes_of(b));
  }
  return shape;
}

// Any bytes: only their number is checked, before the kernel is called.
Bytes valid(Random& random) {
  const auto seed = static_cast<uint32_t>(random());
  const Shape shape = shape_of(seed);
  return input_of(seed, random.bytes(static_cast<int64_t>(shape.bytes + 4 * shape.levels())));
}

bool accepts(Input in) {
  const Shape shape = shape_of(in.take<uint32_t>());
  in.take<int8_t>();
  Bytes codes = in.rest();
  codes.resize(shape.bytes + 4 * shape.levels());
  std::vector<float> levels(shape.levels());
  if (!levels.empty()) std::memcpy(levels.data(), &codes[shape.bytes], 4 * levels.size());
  codes.resize(shape.bytes);
  codes.shrink_to_fit();

  std::vector<float> values(static_cast<size_t>(shape.bounds.back()));
  uniform_decode(codes.data(), levels.data(), shape.bounds.data(), shape.blocks(), shape.bits,
                 values.data());
  size_t byte = 0;
  for (int64_t b = 0; b < shape.blocks(); ++b) {
    const int64_t start = shape.bounds[b], numel = shape.bounds[b + 1] - start;
    for (int64_t i = 0; i < numel; ++i) {
      int code = 0;
      for (int64_t bit = 0; bit < shape.bits; ++bit) {
        const int64_t at = i * shape.bits + bit;
        code |= (codes[byte + at / 8] >> at % 8 & 1) << bit;
      }
      const float expected = levels[2 * b] + static_cast<float>(code) * levels[2 * b + 1];
      const float found = values[start + i];
      EXPECT(found == expected || (std::isnan(found) && std::isnan(expected)));
    }
    byte += static_cast<size_t>(shape.bytes_of(b));
  }

  // Whatever numbers came, they are levels again: between the smallest and the largest of a block.
  uniform_encode(values.data(), shape.bounds.data(), shape.salts.data(), shape.blocks(), shape.bits,
                 codes.data(), levels.data());
  std::vector<float> again(values.size());
  uniform_decode(codes.data(), levels.data(), shape.bounds.data(), shape.blocks(), shape.bits,
                 again.data());
  for (int64_t b = 0; b < shape.blocks(); ++b) {
    const float lowest = levels[2 * b], step = levels[2 * b + 1];
    for (int64_t i = shape.bounds[b]; i < shape.bounds[b + 1]; ++i) {
      if (!std::isfinite(step)) continue;
      EXPECT(std::isfinite(values[i]) && values[i] >= lowest && again[i] >= lowest);
      const float near = 1.001f * step + 1e-5f * std::abs(values[i]) + 1e-36f;
      EXPECT(std::abs(again[i] - values[i]) <= near || std::isinf(again[i]));
    }
  }
  return true;
}

}  // namespace

const Target kUniform{"uniform", valid, accepts};

}  // namespace ddp_compress::fuzz
