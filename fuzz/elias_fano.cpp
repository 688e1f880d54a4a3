#include <optional>

#include "../csrc/elias_fano_layout.h"
#include "../csrc/kernels.h"
#include "target.h"

namespace ddp_compress::fuzz {
namespace {

struct Shape {
  int64_t numel, k;
};

Shape shape_of(uint32_t seed) {
  Random random(seed);
  const int64_t numel = random.size(INT32_MAX);
  return {numel, random.size(std::min<int64_t>(numel, 2000))};
}

Bytes encode(const std::vector<int32_t>& indices, Shape shape) {
  Bytes message(static_cast<size_t>(elias_fano_size(shape.numel, shape.k)));
  elias_fano_encode(indices.data(), std::ssize(indices), shape.numel, shape.k, message.data());
  return message;
}

std::optional<std::vector<int32_t>> decode(const Bytes& message, Shape shape) {
  std::vector<int32_t> indices(static_cast<size_t>(shape.k));
  const int64_t count =
      elias_fano_decode(message.data(), std::ssize(message), shape.numel, shape.k, indices.data());
  if (is_decode_error(count)) return {};
  EXPECT(count >= 0 && count <= shape.k);
  indices.resize(static_cast<size_t>(count));
  return indices;
}

Bytes valid(Random& random) {
  const auto seed = static_cast<uint32_t>(random());
  const Shape shape = shape_of(seed);
  const auto indices = random.positions(shape.numel, random.size(shape.k));
  const Bytes message = encode(indices, shape);
  EXPECT(decode(message, shape) == indices);
  return input_of(seed, message);
}

bool accepts(Input in) {
  Shape shape = shape_of(in.take<uint32_t>());
  shape.k = std::clamp<int64_t>(shape.k + in.take<int8_t>(), 0, shape.numel);
  Bytes message = in.rest();
  const auto indices = decode(message, shape);
  if (!indices) return false;
  EXPECT(ascend_within(*indices, shape.numel));
  const Bytes again = encode(*indices, shape);
  EXPECT(again.size() <= message.size());
  message.resize(again.size());
  EXPECT(again == message);
  return true;
}

}  // namespace

const Target kEliasFano{"elias_fano", valid, accepts};

}  // namespace ddp_compress::fuzz
