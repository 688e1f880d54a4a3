#include <optional>

#include "../csrc/kernels.h"
#include "target.h"

namespace ddp_compress::fuzz {
namespace {

struct Shape {
  int64_t count;
  int alphabet;
};

Shape shape_of(uint32_t seed) {
  Random random(seed);
  const int64_t count = random.size(1000);
  return {count, 2 + static_cast<int>(random.size(63))};
}

struct Decoded {
  Bytes symbols;
  int64_t used;
};

std::optional<Decoded> decode(const Bytes& message, Shape shape) {
  Decoded found{Bytes(static_cast<size_t>(shape.count)), 0};
  found.used = rans_decode(message.data(), std::ssize(message), shape.count, shape.alphabet,
                           found.symbols.data());
  if (is_decode_error(found.used)) return {};
  EXPECT(found.used >= 0 && found.used <= std::ssize(message));
  return found;
}

// Encodes, and sees that all comes back.
Bytes encode(const Bytes& symbols, Shape shape) {
  const Bytes message = rans_encode(symbols.data(), std::ssize(symbols), shape.alphabet);
  const auto found = decode(message, shape);
  EXPECT(found && found->symbols == symbols && found->used == std::ssize(message));
  return message;
}

// Symbols of any skew: most of them are below some number.
Bytes valid(Random& random) {
  const auto seed = static_cast<uint32_t>(random());
  const Shape shape = shape_of(seed);
  const int64_t usual = 1 + random.below(shape.alphabet);
  const int64_t rare = 1 + random.size(1000);
  Bytes symbols(static_cast<size_t>(shape.count));
  for (uint8_t& symbol : symbols)
    symbol = static_cast<uint8_t>(random.below(random.one_in(rare) ? shape.alphabet : usual));
  return input_of(seed, encode(symbols, shape));
}

bool accepts(Input in) {
  Shape shape = shape_of(in.take<uint32_t>());
  shape.count = std::max<int64_t>(shape.count + in.take<int8_t>(), 0);
  const auto found = decode(in.rest(), shape);
  if (!found) return false;
  for (const uint8_t symbol : found->symbols) EXPECT(symbol < shape.alphabet);
  encode(found->symbols, shape);
  return true;
}

}  // namespace

const Target kRans{"rans", valid, accepts};

}  // namespace ddp_compress::fuzz
