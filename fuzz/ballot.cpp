#include <numeric>

#include "../csrc/kernels.h"
#include "target.h"

namespace ddp_compress::fuzz {
namespace {

bool accepts(Input in) {
  Random random(in.take<uint64_t>());
  const int64_t numel = random.size(INT32_MAX);
  const int64_t voters = 1 + random.size(8);
  std::vector<std::vector<int32_t>> ballots;
  size_t cast = 0;
  for (int64_t i = 0; i < voters; ++i) {
    ballots.push_back(random.positions(numel, random.size(3000)));
    cast += ballots.back().size();
  }
  std::vector<int32_t> positions(cast + 1), votes(cast + 1);
  const int64_t count = tally({ballots.begin(), ballots.end()}, positions.data(), votes.data());
  positions.resize(static_cast<size_t>(count));
  votes.resize(static_cast<size_t>(count));
  EXPECT(ascend_within(positions, numel));
  EXPECT(std::accumulate(votes.begin(), votes.end(), size_t{0}) == cast);

  const auto bounds = random.bounds(numel, 20);
  std::vector<int64_t> salts(bounds.size() - 1);
  for (int64_t& salt : salts) salt = static_cast<int64_t>(random());
  std::vector<int64_t> keys(positions.size());
  vote_keys(positions.data(), votes.data(), std::ssize(keys), bounds.data(), salts.data(),
            std::ssize(salts), random.one_in(2) ? voters : INT32_MAX, random.one_in(2),
            keys.data());

  const int64_t k = random.size(std::ssize(keys) + 5);
  std::vector<int64_t> winners(static_cast<size_t>(std::min(k, std::ssize(keys))));
  largest(keys.data(), std::ssize(keys), k, winners.data());
  EXPECT(ascend_within(winners, std::ssize(keys)));
  return true;
}

}  // namespace

const Target kBallot{"ballot", seed, accepts};

}  // namespace ddp_compress::fuzz
