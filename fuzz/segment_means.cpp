#include "../csrc/kernels.h"
#include "gradients.h"

namespace ddp_compress::fuzz {
namespace {

template <typename A>
void run(Random& random) {
  const auto bounds = random.bounds(random.size(3000), 20);
  std::vector<int64_t> counts;
  for (size_t i = 1; i < bounds.size(); ++i) counts.push_back(bounds[i] - bounds[i - 1]);
  const auto values = numbers<A>(random, bounds.back());
  std::vector<float> means(counts.size());
  segment_means(values.data(), counts.data(), std::ssize(counts), means.data());
  for (size_t i = 0; i < counts.size(); ++i) EXPECT(counts[i] > 0 || means[i] == 0);
}

bool accepts(Input in) {
  Random random(in.take<uint64_t>());
  random.one_in(2) ? run<float>(random) : run<double>(random);
  return true;
}

}  // namespace

const Target kSegmentMeans{"segment_means", seed, accepts};

}  // namespace ddp_compress::fuzz
