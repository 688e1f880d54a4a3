#include <algorithm>
#include <utility>

#include "../kernels.h"
#include "kth_largest.h"
#include "tie_hash.h"

namespace ddp_compress {
namespace {

// Positions of either side, each with the votes of both.
Tally merge(const Tally& left, const Tally& right) {
  const size_t lefts = left.positions.size(), rights = right.positions.size();
  Tally both{std::vector<int32_t>(lefts + rights), std::vector<int32_t>(lefts + rights)};
  size_t i = 0, j = 0, count = 0;
  // No branch on which comes first: nothing foretells it.
  while (i < lefts && j < rights) {
    const int32_t a = left.positions[i], b = right.positions[j];
    const int32_t from_left = a <= b, from_right = b <= a;
    both.positions[count] = std::min(a, b);
    both.votes[count++] = (-from_left & left.votes[i]) + (-from_right & right.votes[j]);
    i += static_cast<size_t>(from_left);
    j += static_cast<size_t>(from_right);
  }
  const auto append = [&](const Tally& rest, size_t from) {
    std::copy(rest.positions.begin() + from, rest.positions.end(), both.positions.begin() + count);
    std::copy(rest.votes.begin() + from, rest.votes.end(), both.votes.begin() + count);
    count += rest.positions.size() - from;
  };
  append(left, i);
  append(right, j);
  both.positions.resize(count);
  both.votes.resize(count);
  return both;
}

}  // namespace

// Merges neighbours until one is left, so that every vote is moved log2(ballots) times.
Tally tally(std::vector<Tally> ballots) {
  while (ballots.size() > 1) {
    std::vector<Tally> merged;
    for (size_t i = 0; i + 1 < ballots.size(); i += 2)
      merged.push_back(merge(ballots[i], ballots[i + 1]));
    if (ballots.size() % 2) merged.push_back(std::move(ballots.back()));
    ballots = std::move(merged);
  }
  return std::move(ballots[0]);
}

void vote_keys(const int32_t* positions, const int32_t* votes, int64_t count, const int64_t* bounds,
               const int64_t* salts, int64_t params, int64_t voters, bool random, int64_t* keys) {
  if (count == 0) return;  // there may be no parameters, and then no salts to point at
  Places places(bounds, salts, params, 0);
  for (int64_t i = 0; i < count; ++i) {
    int64_t hash = places.hash(positions[i], 0);
    if (random) {
      for (int32_t draw = 1; draw < votes[i]; ++draw)
        hash = std::max<int64_t>(hash, places.hash(positions[i], static_cast<uint64_t>(draw)));
      keys[i] = voters * hash;
    } else {
      keys[i] = int64_t{votes[i] - 1} << 32 | hash;
    }
  }
}

void largest(const int64_t* keys, int64_t count, int64_t k, int64_t* indices) {
  k = std::min(k, count);
  if (k == 0) return;
  const int64_t kth = kth_largest(keys, count, k);
  int64_t ties = k;
  for (int64_t i = 0; i < count; ++i) ties -= keys[i] > kth;
  for (int64_t i = 0; i < count; ++i) {
    const bool tie = keys[i] == kth;
    if (keys[i] > kth || (tie && ties > 0)) *indices++ = i;
    ties -= tie;
  }
}

}  // namespace ddp_compress
