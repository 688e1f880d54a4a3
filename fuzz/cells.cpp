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
  const int64_t edge_count = random.below(32), groups = std::ssize(counts);
  const auto edges = numbers<double>(random, groups * edge_count);

  Bytes cells(values.size());
  cell_numbers(values.data(), counts.data(), groups, edges.data(), edge_count, cells.data());
  const auto width = static_cast<int>(2 * (edge_count + 1) + 1);
  for (size_t i = 0; i < cells.size(); ++i)
    EXPECT(cells[i] < width && (cells[i] == 0) == (values[i] == 0));

  std::vector<float> means(static_cast<size_t>(groups * width)), found(values.size());
  cell_means(values.data(), cells.data(), counts.data(), groups, width, means.data());
  cell_values(means.data(), cells.data(), counts.data(), groups, width, found.data());
  for (size_t i = 0; i < found.size(); ++i) EXPECT(cells[i] != 0 || found[i] == 0);
}

bool accepts(Input in) {
  Random random(in.take<uint64_t>());
  random.one_in(2) ? run<float>(random) : run<double>(random);
  return true;
}

}  // namespace

const Target kCells{"cells", seed, accepts};

}  // namespace ddp_compress::fuzz
