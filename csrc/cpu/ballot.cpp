#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "../kernels.h"
#include "kth_largest.h"
#include "tie_hash.h"

namespace ddp_compress {
namespace {

constexpr int kWord = 64;
constexpr int64_t kWindow = kWord * kWord;  // positions; their counters stay in the nearest cache

// The votes for the positions of a window: a counter for each, a bit where it is not zero, and a
// bit where a word of these is not.
struct Counters {
  std::array<int32_t, kWindow> votes{};
  std::array<uint64_t, kWord> voted{};
  uint64_t words = 0;

  // Returns how many of a ballot's positions, from its first on, are in the window.
  size_t add(std::span<const int32_t> ballot, int64_t start) {
    uint64_t here = 0;
    size_t next = 0;
    for (; next < ballot.size() && ballot[next] < start + kWindow; ++next) {
      const int64_t place = ballot[next] - start;
      ++votes[place];
      voted[place / kWord] |= uint64_t{1} << (place % kWord);
      here |= uint64_t{1} << (place / kWord);
    }
    words |= here;
    return next;
  }

  // Appends what was voted for to `count` positions and zeroes it. May write one slot beyond them.
  int64_t take(int64_t start, int32_t* positions, int32_t* found, int64_t count) {
    for (; words != 0; words &= words - 1) {
      const int word = std::countr_zero(words);
      // Several at once, though there may be fewer: nothing foretells how many there are. Where
      // none is left, the last place is taken again, which nobody needs any more.
      for (uint64_t bits = std::exchange(voted[word], 0); bits != 0;) {
        for (int i = 0; i < 4; ++i) {
          const int place = kWord * word + std::countr_zero(bits | uint64_t{1} << (kWord - 1));
          positions[count] = static_cast<int32_t>(start + place);
          found[count] = std::exchange(votes[place], 0);
          count += bits != 0;
          bits &= bits - 1;
        }
      }
    }
    return count;
  }
};

}  // namespace

// Counts window after window; the next starts at the first position that any ballot still holds.
int64_t tally(std::vector<std::span<const int32_t>> ballots, int32_t* positions, int32_t* votes) {
  Counters counters;
  int64_t count = 0;
  for (;;) {
    int64_t start = INT64_MAX;
    for (const auto& ballot : ballots)
      if (!ballot.empty()) start = std::min<int64_t>(start, ballot.front());
    if (start == INT64_MAX) return count;
    for (auto& ballot : ballots) ballot = ballot.subspan(counters.add(ballot, start));
    count = counters.take(start, positions, votes, count);
  }
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
  // No branch on what is taken: nothing foretells it.
  for (int64_t i = 0, taken = 0; taken < k; ++i) {
    const bool tie = keys[i] == kth;
    indices[taken] = i;
    taken += (keys[i] > kth) | (tie & (ties > 0));
    ties -= tie;
  }
}

}  // namespace ddp_compress
