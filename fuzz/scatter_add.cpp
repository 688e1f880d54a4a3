#include "../csrc/kernels.h"
#include "gradients.h"

namespace ddp_compress::fuzz {
namespace {

// `out` is a part of the message: entries lie before it, in it and behind it.
bool accepts(Input in) {
  Random random(in.take<uint64_t>());
  any_dtype(random, [&]<typename G, typename A>(G, A) {
    const int64_t total = random.size(random.one_in(20) ? 40'000 : 3000);
    const int64_t start = random.below(total + 1), numel = random.below(total - start + 1);
    std::vector<std::vector<int32_t>> indices;
    std::vector<std::vector<A>> values;
    std::vector<Entries<A>> ranks;
    for (int64_t i = random.size(5); i > 0; --i) {
      indices.push_back(random.positions(total, random.size(std::min<int64_t>(total, 2000))));
      values.push_back(numbers<A>(random, std::ssize(indices.back())));
      ranks.push_back({indices.back().data(), values.back().data(), std::ssize(values.back())});
    }
    const auto before = numbers<G>(random, numel);
    for (const bool afresh : {false, true}) {
      const auto run = [&] {
        auto out = before;
        ddp_compress::scatter_add(out.data(), start, numel, ranks, A(0.25), afresh);
        return out;
      };
      EXPECT(same_bits(portably(false, run), portably(true, run)));
    }
  });
  return true;
}

}  // namespace

const Target kScatterAdd{"scatter_add", seed, accepts};

}  // namespace ddp_compress::fuzz
