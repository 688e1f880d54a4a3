// The candidates for the k largest magnitudes, and what one scan looks for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "hits.h"
#include "kth_largest.h"
#include "scratch.h"

namespace ddp_compress {

// The candidates for the k largest magnitudes, in ascending position.
template <typename A>
class Candidates {
 public:
  Candidates(int64_t k, Ties ties, Fastest<A> fastest)
      : k_(k),
        ties_(ties),
        fastest_(fastest),
        capacity_(2 * k + kBlock),
        indices_(capacity_ + kBlock + 8),
        values_(capacity_ + kBlock + 8) {}

  // What an equal's hash must reach.
  uint32_t least_hash() const { return bar_ > 0 ? bar_ + 1 : 0; }
  A threshold() const { return std::bit_cast<A>(floor_); }
  // Whether a scan from a lower threshold might find more.
  bool short_of_k() const { return (floor_ > 1 || bar_ > 0) && count_ < k_; }

  // Starts over, admitting magnitudes from a floor up. Zeros are never admitted.
  void restart(Threshold<A> from) {
    count_ = 0;
    floor_ = std::clamp<Key<A>>(from.floor, 1, kInfinity<A>);
    bar_ = from.bar;
  }

  // Takes the hits of one block that are of a side.
  void take(const Hits<A>& hits, Side side) {
    Admission<A> admits{side, floor_, bar_, nullptr};
    if (bar_) {
      hashes_.resize(kBlock + 8);
      ties_.hash(hits.indices.data(), hits.count, hashes_.data());
      admits.hashes = hashes_.data();
    }
    count_ = fastest_.append(hits, admits, indices_.get(), values_.get(), count_);
    // Too many candidates mean that the threshold can rise.
    if (count_ > capacity_) keep_largest();
  }

  // Keeps the k largest and raises the threshold to what can still outdo them.
  void keep_largest() {
    if (count_ <= k_) return;
    const Scratch<Key<A>> keys(count_);
    std::transform(values(), values() + count_, keys.get(), key_of<A>);
    const Key<A> kth = kth_largest(keys.get(), count_, k_);
    int64_t ties = k_;  // to be kept
    for (int64_t i = 0; i < count_; ++i) ties -= keys[i] > kth;
    const Scratch<uint32_t> hashes(count_);  // of the equals of the k-th
    uint32_t bar = kTopHash;
    if (ties_.salts) {
      const int64_t equals = hash_equals(kth, keys.get(), hashes.get());
      bar = kth_largest(hashes.get(), equals, ties);
      for (int64_t i = 0; i < equals; ++i) ties -= hashes[i] > bar;
    }
    int64_t kept = 0, equal = 0;
    for (int64_t i = 0; i < count_; ++i) {
      bool keep = keys[i] > kth;
      if (keys[i] == kth) {
        const uint32_t hash = ties_.salts ? hashes[equal++] : kTopHash;
        keep = hash > bar || (hash == bar && ties-- > 0);
      }
      indices_[kept] = indices_[i];
      values_[kept] = values_[i];
      kept += keep;
    }
    count_ = kept;
    // A later equal needs a larger hash.
    floor_ = kth + (bar == kTopHash);
    bar_ = bar == kTopHash ? 0 : bar;
  }

  const Ties& ties() const { return ties_; }
  int64_t count() const { return count_; }
  const int32_t* indices() const { return indices_.get(); }
  const A* values() const { return values_.get(); }

 private:
  // Of those candidates whose key is `kth`; returns how many there are.
  int64_t hash_equals(Key<A> kth, const Key<A>* keys, uint32_t* hashes) const {
    const Scratch<int32_t> positions(count_);
    int64_t count = 0;
    for (int64_t i = 0; i < count_; ++i) {
      positions[count] = indices_[i];
      count += keys[i] == kth;
    }
    ties_.hash(positions.get(), count, hashes);
    return count;
  }

  int64_t k_;
  Ties ties_;
  Fastest<A> fastest_;
  int64_t capacity_;
  Key<A> floor_ = 1;
  uint32_t bar_ = 0;  // what the hash of a key at the floor must exceed; 0 where all are admitted
  int64_t count_ = 0;
  std::vector<uint32_t> hashes_;  // of a block's hits
  Scratch<int32_t> indices_;
  Scratch<A> values_;
};

// What one scan looks for: the k largest magnitudes, or the k largest on either side of zero.
template <typename A>
struct Search {
  bool heavier;
  Candidates<A> positive;  // all magnitudes when not `heavier`
  Candidates<A> negative;
  bool finite = true;

  Search(int64_t k, Ties ties, bool heavier, Fastest<A> fastest)
      : heavier(heavier),
        positive(k, ties, fastest),
        negative(heavier ? k : 0, ties, fastest),
        fastest_(fastest) {}

  // Scans look for value >= above or value <= below; a NaN is a hit too.
  A above() const { return positive.threshold(); }
  A below() const { return heavier ? -negative.threshold() : -positive.threshold(); }

  // Takes one block's hits. Only here is anything checked for being finite: what is not is a hit.
  void take(const Hits<A>& hits) {
    finite = finite && fastest_.largest(hits.values.data(), hits.whole_vectors()) < kInfinity<A>;
    if (!heavier) return positive.take(hits, Side::kBoth);
    positive.take(hits, Side::kPositive);
    negative.take(hits, Side::kNegative);
  }

  uint32_t least_hash_above() const { return positive.least_hash(); }
  uint32_t least_hash_below() const { return (heavier ? negative : positive).least_hash(); }
  // Whether so many are equal at the threshold that all places are worth a hash.
  bool has_ties() const { return has_ties_; }

  bool short_of_k() const { return positive.short_of_k() || (heavier && negative.short_of_k()); }

  void restart(Threshold<A> above, Threshold<A> below) {
    has_ties_ = above.bar > 0 || below.bar > 0;
    positive.restart(above);
    negative.restart(below);
  }

 private:
  Fastest<A> fastest_;
  bool has_ties_ = false;
};

}  // namespace ddp_compress
