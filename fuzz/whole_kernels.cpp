#include "../csrc/kernels.h"
#include "gradients.h"
#include "kernel_tables.h"

namespace ddp_compress::fuzz {
namespace {

template <typename A>
struct Given {
  KernelShape shape;
  std::vector<std::vector<A>> chunks;
  std::vector<int64_t> groups, ks;
  std::vector<std::vector<double>> patterns;
  std::vector<double> ways, singles;
  int64_t count;  // patterns of a size

  explicit Given(Random& random) : shape(random), count(1 + random.size(5)) {
    const size_t params = shape.numels.size();
    int64_t chunk = 0;
    for (size_t p = 0; p < params; ++p) {
      const int64_t numel = shape.bounds[p + 1] - shape.bounds[p];
      chunk += numel;
      if (p + 1 == params || random.one_in(3)) {
        chunks.push_back(numbers<A>(random, chunk));
        chunk = 0;
      }
      const bool next = ks.empty() || random.one_in(3);
      groups.push_back(random.one_in(5) ? -1 : std::ssize(ks) - (next ? 0 : 1));
      if (groups.back() == std::ssize(ks)) ks.push_back(0);
      if (groups.back() >= 0) ks[static_cast<size_t>(groups.back())] += numel;
      patterns.emplace_back();
      for (int64_t i = 0; i < count * shape.numels[p]; ++i)
        patterns.back().push_back(random.one_in(2) ? 1.0 : -1.0);
      singles.push_back(1 + static_cast<double>(random.below(100)) / 10);
      for (int64_t i = 0; i < 2 * count + 1; ++i)
        ways.push_back(1 + static_cast<double>(random.below(100)) / 10);
    }
    for (int64_t& k : ks) k = std::max<int64_t>(1, random.size(k));
  }

  KernelValues<A> values() const {
    KernelValues<A> all{{}, shape.tables(), groups.data(), ks.data(), std::ssize(ks)};
    for (const auto& each : chunks) all.chunks.push_back({each.data(), std::ssize(each)});
    return all;
  }
  KernelPrices prices() const {
    KernelPrices all{{}, count, ways.data(), singles.data()};
    for (size_t p = 0; p < patterns.size(); ++p)
      all.sizes.push_back({shape.numels[p], patterns[p].data()});
    return all;
  }
};

template <typename A>
void run(Random& random) {
  const Given<A> given(random);
  const auto rank = [&](bool portable) {
    return portably(portable, [&] { return rank_kernels(given.values(), given.prices()); });
  };
  const RankedKernels<A> found = rank(false), portable = rank(true);
  EXPECT(found.kernels == portable.kernels && found.ways == portable.ways);
  EXPECT(found.singles == portable.singles && same_bits(found.values, portable.values));
  EXPECT(ascend_within(found.kernels, given.shape.kernels()));
  EXPECT(ascend_within(found.singles, given.shape.numel()));
  for (const int32_t way : found.ways) EXPECT(way >= 0 && way <= 2 * given.count);

  for (const int64_t m : given.shape.numels) {
    if (m == 1) continue;
    const int64_t count = random.size(100);
    const auto largest = [&](bool portable) {
      return portably(portable, [&] { return largest_kernels(given.values(), m, count); });
    };
    const std::vector<A> rows = largest(false);
    EXPECT(same_bits(rows, largest(true)) && std::ssize(rows) <= m * count);
  }
}

bool accepts(Input in) {
  Random random(in.take<uint64_t>());
  random.one_in(2) ? run<float>(random) : run<double>(random);
  return true;
}

}  // namespace

const Target kWholeKernels{"whole_kernels", seed, accepts};

}  // namespace ddp_compress::fuzz
