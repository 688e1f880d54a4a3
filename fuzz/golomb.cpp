#include <optional>

#include "../csrc/kernels.h"
#include "target.h"

namespace ddp_compress::fuzz {
namespace {

struct Shape {
  std::vector<int64_t> bounds;
  int64_t limit;

  int64_t params() const { return std::ssize(bounds) - 1; }
};

Shape shape_of(uint32_t seed) {
  Random random(seed);
  const int64_t numel = random.size(INT32_MAX);
  return {random.bounds(numel, 20), random.size(std::min<int64_t>(numel, 2000))};
}

struct Decoded {
  std::vector<int32_t> indices;
  int64_t used;
};

std::optional<Decoded> decode(const Bytes& message, const Shape& shape) {
  const int64_t room = std::min(shape.limit, 8 * std::ssize(message));
  Decoded found{std::vector<int32_t>(static_cast<size_t>(room)), 0};
  int64_t count = 0;
  found.used = golomb_decode(message.data(), std::ssize(message), shape.bounds.data(),
                             shape.params(), shape.limit, found.indices.data(), &count);
  if (is_decode_error(found.used)) return {};
  EXPECT(count >= 0 && count <= room);
  found.indices.resize(static_cast<size_t>(count));
  EXPECT(found.used >= 0 && found.used <= std::ssize(message));
  return found;
}

// Encodes, and sees that all comes back.
Bytes encode(const std::vector<int32_t>& indices, const Shape& shape) {
  const Bytes message =
      golomb_encode(indices.data(), std::ssize(indices), shape.bounds.data(), shape.params());
  const auto found = decode(message, shape);
  EXPECT(found && found->indices == indices && found->used == std::ssize(message));
  return message;
}

Bytes valid(Random& random) {
  const auto seed = static_cast<uint32_t>(random());
  const Shape shape = shape_of(seed);
  return input_of(seed, encode(random.positions(shape.bounds.back(), shape.limit), shape));
}

bool accepts(Input in) {
  Shape shape = shape_of(in.take<uint32_t>());
  shape.limit = std::max<int64_t>(shape.limit + in.take<int8_t>(), 0);
  const auto found = decode(in.rest(), shape);
  if (!found) return false;
  EXPECT(std::ssize(found->indices) <= shape.limit);
  EXPECT(ascend_within(found->indices, shape.bounds.back()));
  // A sender may take another parameter than the best; it gains nothing by it.
  EXPECT(std::ssize(encode(found->indices, shape)) <= found->used);
  return true;
}

}  // namespace

const Target kGolomb{"golomb", valid, accepts};

}  // namespace ddp_compress::fuzz
