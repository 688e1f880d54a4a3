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

// Beside its first half, which is another message.
std::optional<Decoded> decode(const Bytes& message, Shape shape) {
  const Bytes half(message.begin(), message.begin() + std::ssize(message) / 2);
  Bytes symbols(static_cast<size_t>(3 * shape.count));
  int64_t used[3];
  rans_decode({message, half, message}, shape.count, shape.alphabet, symbols.data(), used);
  EXPECT(used[0] == used[2]);
  if (is_decode_error(used[0])) return {};
  EXPECT(used[0] >= 0 && used[0] <= std::ssize(message));
  const auto end = symbols.begin() + shape.count;
  EXPECT(std::equal(symbols.begin(), end, end + shape.count));
  return Decoded{{symbols.begin(), end}, used[0]};
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
