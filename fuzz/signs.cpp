#include <bit>
#include <cmath>

#include "../csrc/kernels.h"
#include "target.h"

namespace ddp_compress::fuzz {
namespace {

struct Shape {
  std::vector<int64_t> bounds;
  int64_t block;
  size_t bits = 0, scales = 0;  // bytes of the signs, and how many scales

  int64_t segments() const { return std::ssize(bounds) - 1; }
};

Shape shape_of(uint32_t seed) {
  Random random(seed);
  Shape shape{random.bounds(random.size(2000), 10), 8 * (1 + random.size(INT64_MAX / 8 - 1))};
  for (int64_t s = 0; s < shape.segments(); ++s) {
    const int64_t numel = shape.bounds[s + 1] - shape.bounds[s];
    shape.bits += static_cast<size_t>((numel + 7) / 8);
    shape.scales += static_cast<size_t>(numel / shape.block + (numel % shape.block > 0));
  }
  return shape;
}

struct Message {
  Bytes bits;
  std::vector<float> scales;
};

template <typename A>
Message encode(const std::vector<A>& values, const Shape& shape) {
  Message message{Bytes(shape.bits), std::vector<float>(shape.scales)};
  sign_encode(values.data(), shape.bounds.data(), shape.segments(), shape.block,
              message.bits.data(), message.scales.data());
  return message;
}

// Any bytes: only their number is checked, before the kernel is called.
Bytes valid(Random& random) {
  const auto seed = static_cast<uint32_t>(random());
  const Shape shape = shape_of(seed);
  Bytes message = random.bytes(std::ssize(Bytes(shape.bits)) + 4 * std::ssize(Bytes(shape.scales)));
  return input_of(seed, message);
}

bool accepts(Input in) {
  const Shape shape = shape_of(in.take<uint32_t>());
  in.take<int8_t>();
  Message message{in.rest(), std::vector<float>(shape.scales)};
  message.bits.resize(shape.bits + 4 * shape.scales);
  if (shape.scales) std::memcpy(message.scales.data(), &message.bits[shape.bits], 4 * shape.scales);
  message.bits.resize(shape.bits);
  message.bits.shrink_to_fit();

  std::vector<float> values(static_cast<size_t>(shape.bounds.back()));
  sign_decode(message.bits.data(), message.scales.data(), shape.bounds.data(), shape.segments(),
              shape.block, values.data());
  std::vector<float> twice(values.size(), 1.0f);
  const SignList sent{message.bits.data(), message.scales.data()};
  sign_add<float, float>(twice.data(), {sent, sent}, shape.bounds.data(), shape.segments(),
                         shape.block, 1.0f, true);
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT(std::isnan(values[i]) ? std::isnan(twice[i]) : twice[i] == values[i] + values[i]);
  const Message again = encode(values, shape);
  const Message wide = encode(std::vector<double>(values.begin(), values.end()), shape);
  EXPECT(again.bits == wide.bits);

  size_t byte = 0, scale = 0;
  for (int64_t s = 0; s < shape.segments(); ++s) {
    const int64_t start = shape.bounds[s], numel = shape.bounds[s + 1] - start;
    for (int64_t i = 0; i < numel; ++i) {
      const float sent = message.scales[scale + i / shape.block];
      const bool bit = message.bits[byte + i / 8] >> i % 8 & 1;
      const float expected = bit ? -sent : sent;
      EXPECT(std::bit_cast<uint32_t>(values[start + i]) == std::bit_cast<uint32_t>(expected));
      EXPECT((again.bits[byte + i / 8] >> i % 8 & 1) == std::signbit(expected));
      EXPECT(!std::isfinite(sent) || again.scales[scale + i / shape.block] == std::abs(sent));
    }
    byte += (numel + 7) / 8;
    scale += numel / shape.block + (numel % shape.block > 0);
  }
  return true;
}

}  // namespace

const Target kSigns{"signs", valid, accepts};

}  // namespace ddp_compress::fuzz
