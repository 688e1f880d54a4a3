#include <numeric>

#include "../csrc/kernels.h"
#include "gradients.h"

namespace ddp_compress::fuzz {
namespace {

// A message of some chunks; every parameter is a group of its own, or belongs to that before it,
// or to none.
bool accepts(Input in) {
  Random random(in.take<uint64_t>());
  any_dtype(random, [&]<typename G, typename A>(G, A) {
    const bool has_momentum = random.one_in(2), has_sums = random.one_in(2);
    const int64_t most = random.one_in(20) ? 40'000 : 2000;
    std::vector<std::vector<G>> grads;
    std::vector<std::vector<A>> residuals, momenta;
    int64_t total = 0;
    for (int64_t i = random.size(3); i >= 0; --i) {
      const int64_t numel = random.size(most);
      total += numel;
      grads.push_back(numbers<G>(random, numel));
      residuals.push_back(numbers<A>(random, numel));
      // Not empty: a null pointer says that no momentum is kept.
      momenta.push_back(numbers<A>(random, has_momentum ? std::max<int64_t>(numel, 1) : 0));
    }

    const auto bounds = random.bounds(total, 12);
    std::vector<int64_t> groups, ks, salts;
    int64_t asked = 0;
    for (size_t p = 1; p < bounds.size(); ++p) {
      if (random.one_in(8)) {
        groups.push_back(-1);
        continue;
      }
      if (ks.empty() || random.one_in(2)) ks.push_back(1 + random.size(2000)), asked += ks.back();
      groups.push_back(std::ssize(ks) - 1);
    }
    if (random.one_in(2))
      for (size_t p = 0; p < groups.size(); ++p) salts.push_back(static_cast<int64_t>(random()));

    const bool heavier = random.one_in(2);
    const auto run = [&] {
      struct {
        std::vector<int32_t> indices;
        std::vector<A> values;
        bool finite = true;
        std::vector<int64_t> counts;
        std::vector<float> means;
        std::vector<std::vector<A>> sums, moved;
      } result;
      std::vector<Chunk<G, A>> chunks;
      for (size_t i = 0; i < grads.size(); ++i) {
        result.sums.emplace_back(has_sums ? grads[i].size() : 0);
        result.moved.emplace_back(has_sums && has_momentum ? grads[i].size() : 0);
        chunks.push_back({grads[i].data(), residuals[i].data(),
                          has_momentum ? momenta[i].data() : nullptr, std::ssize(grads[i]),
                          has_sums ? result.sums.back().data() : nullptr,
                          has_sums && has_momentum ? result.moved.back().data() : nullptr});
      }
      result.indices.resize(static_cast<size_t>(asked));
      result.values.resize(static_cast<size_t>(asked));
      result.counts.resize(ks.size());
      result.means.resize(heavier ? ks.size() : 0);
      const int64_t count =
          topk<G, A>(chunks, A(0.9), bounds.data(), groups.data(), std::ssize(groups), ks.data(),
                     std::ssize(ks), salts.empty() ? nullptr : salts.data(), heavier,
                     {result.indices.data(), result.values.data(), &result.finite,
                      result.counts.data(), result.means.data()});
      result.indices.resize(static_cast<size_t>(count));
      result.values.resize(static_cast<size_t>(count));
      return result;
    };
    const auto wide = portably(false, run), portable = portably(true, run);
    EXPECT(wide.finite == portable.finite);
    EXPECT(wide.indices == portable.indices);
    EXPECT(same_bits(wide.values, portable.values));
    for (size_t i = 0; i < grads.size(); ++i) {
      EXPECT(same_bits(wide.sums[i], portable.sums[i]));
      EXPECT(same_bits(wide.moved[i], portable.moved[i]));
    }
    EXPECT(ascend_within(wide.indices, total));
    EXPECT(std::ssize(wide.indices) <= asked);
    EXPECT(wide.counts == portable.counts);
    EXPECT(same_bits(wide.means, portable.means));
    const auto& counts = wide.counts;
    EXPECT(std::reduce(counts.begin(), counts.end()) == std::ssize(wide.indices));
  });
  return true;
}

}  // namespace

const Target kTopK{"topk", seed, accepts};

}  // namespace ddp_compress::fuzz
