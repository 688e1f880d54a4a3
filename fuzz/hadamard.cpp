#include <bit>
#include <cmath>

#include "../csrc/butterflies.h"
#include "../csrc/kernels.h"
#include "target.h"

namespace ddp_compress::fuzz {
namespace {

bool accepts(Input in) {
  Random random(in.take<uint64_t>());
  std::vector<int64_t> bounds{0}, salts;
  for (int64_t left = random.size(3 * kLargestBlock); left > 0;) {
    const int64_t most = std::min<int64_t>(left, kLargestBlock);
    const int64_t size = random.one_in(8)
                             ? 0
                             : int64_t{1}
                                   << (random.below(std::bit_width(static_cast<uint64_t>(most))));
    bounds.push_back(bounds.back() + size);
    salts.push_back(static_cast<int64_t>(random()));
    left -= std::max<int64_t>(size, 1);
  }
  std::vector<float> values(static_cast<size_t>(bounds.back()));
  for (float& value : values) value = static_cast<float>(random.below(2001) - 1000) / 1000;
  const std::vector<float> before = values;
  for (const bool inverse : {false, true})
    hadamard(values.data(), bounds.data(), salts.data(), std::ssize(salts), inverse);
  for (size_t i = 0; i < values.size(); ++i) EXPECT(std::abs(values[i] - before[i]) < 1e-4f);
  return true;
}

}  // namespace

const Target kHadamard{"hadamard", seed, accepts};

}  // namespace ddp_compress::fuzz
