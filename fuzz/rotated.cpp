#include "../csrc/rotated.h"

#include <cmath>

#include "../csrc/kernels.h"
#include "target.h"

namespace ddp_compress::fuzz {
namespace {

// What both sides know, of exact size.
struct Tables {
  std::vector<int64_t> sizes, signs, noises, free;
  std::vector<uint8_t> sent;
  int bits;
  bool unbiased;
  int64_t iterations;

  Rotation rotation() const {
    const auto table = [](const auto& t) { return t.empty() ? nullptr : t.data(); };
    return {sizes.data(),
            std::ssize(sizes),
            table(signs),
            table(free),
            reinterpret_cast<const bool*>(table(sent)),
            bits};
  }
};

Tables tables_of(uint32_t seed) {
  Random random(seed);
  Tables all;
  const std::vector<int64_t> bounds = random.bounds(random.size(20000), 10);
  for (size_t g = 0; g + 1 < bounds.size(); ++g) all.sizes.push_back(bounds[g + 1] - bounds[g]);
  const bool turned = !random.one_in(3);
  for (size_t g = 0; g < all.sizes.size(); ++g) {
    if (turned) all.signs.push_back(static_cast<int64_t>(random()));
    all.noises.push_back(static_cast<int64_t>(random()));
  }
  if (random.one_in(2))
    for (int i = 0; i < kLargestBlock / kSmallestBlock; ++i)
      all.free.push_back(random.below(kSmallestBlock));
  if (random.one_in(2)) {
    const int64_t some = 1 + random.size(30);
    for (int64_t i = 0; i < kMasks; ++i) all.sent.push_back(random.one_in(some));
    for (int64_t size = kSmallestBlock; size <= kLargestBlock; size *= 2)
      all.sent[static_cast<size_t>(2 * size - kSmallestBlock - 1)] = 1;
  }
  all.bits = static_cast<int>(1 + random.below(8));
  all.unbiased = random.one_in(2);
  all.iterations = 1 + random.below(3);
  return all;
}

// Any bytes: only their number is checked, before the kernel is called.
Bytes valid(Random& random) {
  const auto seed = static_cast<uint32_t>(random());
  const Tables tables = tables_of(seed);
  return input_of(seed, random.bytes(Cut(tables.rotation()).bytes));
}

float levels_apart(const Bytes& data, size_t at) {
  float step;
  std::memcpy(&step, &data[at], sizeof(step));
  return step;
}

bool accepts(Input in) {
  const Tables tables = tables_of(in.take<uint32_t>());
  in.take<int8_t>();
  const Rotation rotation = tables.rotation();
  const Cut cut(rotation);
  Bytes data = in.rest();
  data.resize(static_cast<size_t>(cut.bytes));
  data.shrink_to_fit();

  std::vector<float> values(static_cast<size_t>(cut.values));
  rotated_decode(data.data(), rotation, cut, values.data());

  // Two alike are added up to twice of it.
  std::vector<float> twice(values.size(), 1.0f);
  const Sum<float, float> sum{twice.data(), 0, cut.values, kFarthest, 1.0f, true};
  rotated_add<float, float>({data.data(), data.data()}, rotation, cut, sum);
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT(std::isnan(values[i]) ? std::isnan(twice[i])
                                 : twice[i] == 2 * std::clamp(values[i], -kFarthest, kFarthest));

  // Whatever numbers came: where nothing is turned nor left out, they are near again.
  const Drawn drawn{tables.noises.data(), tables.unbiased, tables.iterations};
  rotated_encode(values.data(), rotation, cut, drawn, data.data());
  std::vector<float> again(values.size());
  rotated_decode(data.data(), rotation, cut, again.data());
  for (const Rest& rest : cut.rests)
    for (int64_t i = rest.value; i < rest.value + rest.count; ++i)
      EXPECT(std::isnan(values[i]) ? std::isnan(again[i])
                                   : again[i] == std::clamp(values[i], -kFarthest, kFarthest));
  if (rotation.signs || rotation.sent || tables.iterations > 1) return true;
  const int64_t held = rotation.free ? kSmallestBlock - 1 : kSmallestBlock;
  for (size_t b = 0; b < cut.blocks.size(); ++b) {
    const Block& block = cut.blocks[b];
    const float step = levels_apart(data, static_cast<size_t>(4 * cut.left_over) + 8 * b + 4);
    for (int64_t i = block.value; i < block.value + block.size / kSmallestBlock * held; ++i) {
      if (!std::isfinite(step)) continue;
      const float near = std::clamp(values[i], -kFarthest, kFarthest);
      EXPECT(std::abs(again[i] - near) <= 1.001f * step + 1e-5f * std::abs(near) + 1e-36f);
    }
  }
  return true;
}

}  // namespace

const Target kRotated{"rotated", valid, accepts};

}  // namespace ddp_compress::fuzz
