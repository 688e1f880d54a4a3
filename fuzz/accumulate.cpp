#include "../csrc/kernels.h"
#include "gradients.h"

namespace ddp_compress::fuzz {
namespace {

bool accepts(Input in) {
  Random random(in.take<uint64_t>());
  any_dtype(random, [&]<typename G, typename A>(G, A) {
    const int64_t numel = random.size(3000);
    const auto grad = numbers<G>(random, numel);
    const auto residual = numbers<A>(random, numel), momentum = numbers<A>(random, numel);
    const bool has_momentum = random.one_in(2);
    const auto run = [&] {
      struct {
        std::vector<A> residual, momentum;
      } at{std::vector<A>(numel), std::vector<A>(numel)};
      ddp_compress::accumulate(residual.data(), grad.data(),
                               has_momentum ? momentum.data() : nullptr, A(0.9), at.residual.data(),
                               has_momentum ? at.momentum.data() : nullptr, numel);
      return at;
    };
    const auto wide = portably(false, run), portable = portably(true, run);
    EXPECT(same_bits(wide.residual, portable.residual));
    EXPECT(same_bits(wide.momentum, portable.momentum));
  });
  return true;
}

}  // namespace

const Target kAccumulate{"accumulate", seed, accepts};

}  // namespace ddp_compress::fuzz
