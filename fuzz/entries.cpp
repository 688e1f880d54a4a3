#include <torch/headeronly/util/Half.h>

#include <cmath>

#include "../csrc/elias_fano_layout.h"
#include "../csrc/kernels.h"
#include "target.h"

namespace ddp_compress::fuzz {
namespace {

using torch::headeronly::Half;

struct Shape {
  int64_t numel, k;
  std::vector<int32_t> ends;
  int kind;  // means, fp32, fp16

  int64_t groups() const { return std::ssize(ends); }
  int64_t value_bytes(int64_t count) const {
    return kind == 0 ? 4 * groups() : kind == 1 ? 4 * count : 2 * count;
  }
};

Shape shape_of(uint32_t seed) {
  Random random(seed);
  Shape shape{1 + random.size(INT32_MAX - 1), 0, {}, 0};
  shape.k = 1 + random.size(std::min<int64_t>(shape.numel, 2000) - 1);
  for (const int32_t last :
       random.positions(shape.numel, random.size(std::min(shape.k, int64_t{20}))))
    shape.ends.push_back(last + 1);
  shape.kind = static_cast<int>(random.below(3));
  return shape;
}

struct Found {
  std::vector<int32_t> indices;
  std::vector<float> values;
  std::vector<int64_t> words;
};

Found decode(const Bytes& body, const Shape& shape) {
  Found found{std::vector<int32_t>(static_cast<size_t>(shape.k)),
              std::vector<float>(static_cast<size_t>(shape.k)),
              std::vector<int64_t>(1 + shape.ends.size())};
  const auto with = shape.kind == 2 ? entries_decode<Half> : entries_decode<float>;
  with(body.data(), std::ssize(body), {shape.ends.data(), shape.groups()}, shape.numel, shape.k,
       shape.kind == 0, found.indices.data(), found.values.data(), found.words.data());
  return found;
}

Bytes valid(Random& random) {
  const auto seed = static_cast<uint32_t>(random());
  const Shape shape = shape_of(seed);
  const int64_t end = shape.ends.empty() ? 0 : shape.ends.back();
  const auto indices = random.positions(end, random.size(shape.k));
  Bytes body(static_cast<size_t>(elias_fano_size(shape.numel, shape.k)));
  elias_fano_encode(indices.data(), std::ssize(indices), shape.numel, shape.k, body.data());
  body.resize(body.size() + static_cast<size_t>(shape.value_bytes(std::ssize(indices))));  // zeros
  const Found found = decode(body, shape);
  EXPECT(std::equal(indices.begin(), indices.end(), found.indices.begin()));
  return input_of(seed, body);
}

bool accepts(Input in) {
  Shape shape = shape_of(in.take<uint32_t>());
  shape.k = std::clamp<int64_t>(shape.k + in.take<int8_t>(), std::max<int64_t>(shape.groups(), 1),
                                shape.numel);
  const Bytes body = in.rest();
  Found found = decode(body, shape);
  const int64_t bytes = elias_fano_size(shape.numel, shape.k);
  EXPECT(is_decode_error(found.words[0]) || found.words[0] == bytes);
  if (found.words[0] < 0) return false;
  const auto used = static_cast<size_t>(shape.groups() > 0 ? found.words.back() : 0);
  EXPECT(std::ssize(body) == bytes + shape.value_bytes(static_cast<int64_t>(used)));
  for (size_t i = used; i < found.indices.size(); ++i)
    EXPECT(found.indices[i] == kUnused && found.values[i] == 0);
  for (const float value : found.values) EXPECT(std::isfinite(value));
  found.words[0] = 0;
  for (int64_t g = 0; g < shape.groups(); ++g)
    for (int64_t i = found.words[g]; i < found.words[g + 1]; ++i)
      EXPECT(found.indices[i] < shape.ends[g] && (g == 0 || found.indices[i] >= shape.ends[g - 1]));
  found.indices.resize(used);
  EXPECT(ascend_within(found.indices, shape.numel));
  return true;
}

}  // namespace

const Target kEntries{"entries", valid, accepts};

}  // namespace ddp_compress::fuzz
