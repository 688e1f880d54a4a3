// Exact top-k of the accumulated gradient in one pass over memory.
//
// A sample guesses a threshold a little below the k-th largest value. One scan then reads the
// gradient and its memory, adds them in registers and keeps the few positions above the threshold;
// the k largest of those are the answer. Nothing is written but the answer, and the sums where they
// are wanted. The guess decides the speed alone: too many candidates raise the threshold on the
// way, too few cost a second scan.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>

#include "../kernels.h"
#include "../pieces.h"
#include "kth_largest.h"
#include "scratch.h"
#include "simd.h"
#include "tie_hash.h"

namespace ddp_compress {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// A magnitude as an unsigned integer that orders like it; infinities and NaNs order above all.
template <typename A>
using Key = std::conditional_t<std::is_same_v<A, float>, uint32_t, uint64_t>;

template <typename A>
constexpr Key<A> kInfinity = std::bit_cast<Key<A>>(std::numeric_limits<A>::infinity());

template <typename A>
Key<A> magnitude(A value) {
  return std::bit_cast<Key<A>>(std::abs(value));
}

// Below this a scan's candidates are cheaper than a sample.
constexpr int64_t kSmall = 8192;
constexpr int64_t kBlock = 4096;  // elements scanned between two looks at the threshold
constexpr int64_t kRun = 16;      // neighbours sampled together: one cache line of fp32

// Positions and values, in ascending position: what a scan found in one block.
template <typename A>
struct Hits {
  // A vector store may write up to eight entries past the last.
  std::array<int32_t, kBlock + 8> indices;
  std::array<A, kBlock + 8> values;
  int64_t count = 0;

  void push(int32_t index, A value) {
    indices[count] = index;
    values[count++] = value;
  }
};

// What decides between equal magnitudes: the larger hash of their places, or without salts, and of
// equal hashes, the first position.
struct Ties {
  const int64_t* bounds;
  const int64_t* salts;
  int64_t params;

  Places from(int32_t first) const { return Places(bounds, salts, params, first); }
};

constexpr uint32_t kTopHash = std::numeric_limits<uint32_t>::max();

// The candidates for the k largest magnitudes, in ascending position.
template <typename A>
class Candidates {
 public:
  Candidates(int64_t k, Ties ties)
      : k_(k),
        ties_(ties),
        capacity_(2 * k + kBlock),
        indices_(capacity_ + kBlock),
        values_(capacity_ + kBlock) {}

  Key<A> floor() const { return floor_; }
  A threshold() const { return std::bit_cast<A>(floor_); }
  // Whether a scan from a lower threshold might find more.
  bool short_of_k() const { return floor_ > 1 && count_ < k_; }

  // Starts over, admitting magnitudes from `floor` up. Zeros are never admitted.
  void restart(Key<A> floor) {
    count_ = 0;
    floor_ = std::clamp<Key<A>>(floor, 1, kInfinity<A>);
    bar_ = 0;
  }

  // Takes the hits of one block whose value is wanted.
  template <typename Wanted>
  void take(const Hits<A>& hits, Wanted wanted) {
    if (bar_ == 0) {
      append(hits, [&](int64_t i) { return wanted(hits.values[i]); });
    } else {
      Places places = ties_.from(hits.indices[0]);
      append(hits, [&](int64_t i) {
        const bool outdoes =
            (magnitude(hits.values[i]) > floor_) | (places.hash(hits.indices[i], 0) > bar_);
        return wanted(hits.values[i]) & outdoes;
      });
    }
    // Too many candidates mean that the threshold can rise.
    if (count_ > capacity_) keep_largest();
  }

  // Keeps the k largest and raises the threshold to what can still outdo them.
  void keep_largest() {
    if (count_ <= k_) return;
    const Scratch<Key<A>> keys(count_);
    std::transform(values(), values() + count_, keys.get(), magnitude<A>);
    const Key<A> kth = kth_largest(keys.get(), count_, k_);
    int64_t ties = k_;  // to be kept
    for (int64_t i = 0; i < count_; ++i) ties -= keys[i] > kth;
    const std::vector<uint32_t> hashes = hashes_of(kth, keys.get());
    const uint32_t bar = kth_largest(hashes.data(), static_cast<int64_t>(hashes.size()), ties);
    for (const uint32_t hash : hashes) ties -= hash > bar;
    auto hash = hashes.begin();
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; ++i) {
      bool keep = keys[i] > kth;
      if (keys[i] == kth) {
        keep = *hash > bar || (*hash == bar && ties-- > 0);
        ++hash;
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

  int64_t count() const { return count_; }
  const int32_t* indices() const { return indices_.get(); }
  const A* values() const { return values_.get(); }

 private:
  // Without a branch: half of the hits may be on the other side.
  template <typename Wanted>
  void append(const Hits<A>& hits, Wanted wanted) {
    int32_t* const indices = indices_.get();
    A* const values = values_.get();
    int64_t count = count_;
    for (int64_t i = 0; i < hits.count; ++i) {
      indices[count] = hits.indices[i];
      values[count] = hits.values[i];
      count += wanted(i);
    }
    count_ = count;
  }

  // The hashes of those candidates whose key is `kth`.
  std::vector<uint32_t> hashes_of(Key<A> kth, const Key<A>* keys) const {
    std::vector<uint32_t> hashes;
    if (!ties_.salts) {
      hashes.assign(static_cast<size_t>(std::count(keys, keys + count_, kth)), kTopHash);
      return hashes;
    }
    Places places = ties_.from(indices_[0]);
    for (int64_t i = 0; i < count_; ++i)
      if (keys[i] == kth) hashes.push_back(places.hash(indices_[i], 0));
    return hashes;
  }

  int64_t k_;
  Ties ties_;
  int64_t capacity_;
  Key<A> floor_ = 1;
  uint32_t bar_ = 0;  // what the hash of a key at the floor must exceed; 0 where all are admitted
  int64_t count_ = 0;
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

  Search(int64_t k, Ties ties, bool heavier)
      : heavier(heavier), positive(k, ties), negative(heavier ? k : 0, ties) {}

  // Scans look for value >= above or value <= below; a NaN is a hit too.
  A above() const { return positive.threshold(); }
  A below() const { return heavier ? -negative.threshold() : -positive.threshold(); }

  // Takes one block's hits. Only here is anything checked for being finite: what is not is a hit.
  void take(const Hits<A>& hits) {
    Key<A> largest = 0;
    for (int64_t i = 0; i < hits.count; ++i) largest = std::max(largest, magnitude(hits.values[i]));
    finite = finite && largest < kInfinity<A>;
    if (!heavier) return positive.take(hits, [](A) { return true; });
    positive.take(hits, [](A value) { return !std::signbit(value); });
    negative.take(hits, [](A value) { return std::signbit(value); });
  }

  bool short_of_k() const { return positive.short_of_k() || (heavier && negative.short_of_k()); }

  void restart(Key<A> positive_floor, Key<A> negative_floor) {
    positive.restart(positive_floor);
    negative.restart(negative_floor);
  }
};

// residual + (mu * momentum + grad), one element or eight at a time.
template <typename G, typename A, bool kMomentum>
struct Accumulated {
  const G* grad;
  const A* residual;
  const A* momentum;
  A mu;

  A operator[](int64_t i) const {
    A g = static_cast<A>(grad[i]);
    if constexpr (kMomentum) g = mu * momentum[i] + g;
    return residual[i] + g;
  }

#ifdef DDP_COMPRESS_AVX2
  DDP_COMPRESS_TARGET_AVX2 static __m256 widen(const float* p) { return _mm256_loadu_ps(p); }
  DDP_COMPRESS_TARGET_AVX2 static __m256 widen(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  DDP_COMPRESS_TARGET_AVX2 static __m256 widen(const BFloat16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  DDP_COMPRESS_TARGET_AVX2 __m256 load8(int64_t i) const {
    __m256 g = widen(grad + i);
    if constexpr (kMomentum)
      g = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(mu), _mm256_loadu_ps(momentum + i)), g);
    return _mm256_add_ps(_mm256_loadu_ps(residual + i), g);
  }
#endif
};

// Scans leave the sums where these are wanted.
template <typename Source, typename A>
void scan_portable(const Source& source, A* sums, int64_t begin, int64_t end, int64_t base,
                   const Search<A>& search, Hits<A>& hits) {
  const A above = search.above(), below = search.below();
  for (int64_t i = begin; i < end; ++i) {
    const A value = source[i];
    if (sums) sums[i] = value;
    if (!(value < above && value > below)) hits.push(static_cast<int32_t>(base + i), value);
  }
}

#ifdef DDP_COMPRESS_AVX2
// Row m lists the set bits of m: the lanes to move to the front.
constexpr auto kLanes = [] {
  std::array<std::array<int32_t, 8>, 256> table{};
  for (size_t mask = 0; mask < 256; ++mask)
    for (int32_t lane = 0, n = 0; lane < 8; ++lane)
      if (mask >> lane & 1) table[mask][static_cast<size_t>(n++)] = lane;
  return table;
}();

// Sums go past the caches: nobody reads them soon, and to read first what they replace, as a cache
// would, costs a quarter of the traffic.
template <bool kSums, typename Source>
DDP_COMPRESS_TARGET_AVX2 void scan_avx2(const Source& source, float* sums, int64_t begin,
                                        int64_t end, int64_t base, const Search<float>& search,
                                        Hits<float>& hits) {
  if constexpr (kSums) {
    const int64_t aligned = std::min(end, (begin + 7) / 8 * 8);
    scan_portable(source, sums, begin, aligned, base, search, hits);
    begin = aligned;
  }
  const __m256 above = _mm256_set1_ps(search.above()), below = _mm256_set1_ps(search.below());
  int32_t* indices = hits.indices.data();
  float* values = hits.values.data();
  int64_t count = hits.count;
  int64_t i = begin;
  // No branch on a hit: at 1 % density a mispredicted one costs more than the stores.
#pragma GCC unroll 4
  for (; i + 8 <= end; i += 8) {
    const __m256 value = source.load8(i);
    if constexpr (kSums) _mm256_stream_ps(sums + i, value);
    const __m256 hit = _mm256_or_ps(_mm256_cmp_ps(value, above, _CMP_NLT_UQ),
                                    _mm256_cmp_ps(value, below, _CMP_NGT_UQ));
    const auto mask = static_cast<unsigned>(_mm256_movemask_ps(hit));
    const __m256i order = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLanes[mask].data()));
    const __m256i index = _mm256_add_epi32(order, _mm256_set1_epi32(static_cast<int>(base + i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + count), index);
    _mm256_storeu_ps(values + count, _mm256_permutevar8x32_ps(value, order));
    count += std::popcount(mask);
  }
  hits.count = count;
  scan_portable(source, kSums ? sums : nullptr, i, end, base, search, hits);
}
#endif

template <typename G, typename A, bool kMomentum>
class Selector {
 public:
  using Source = Accumulated<G, A, kMomentum>;

  Selector(const std::vector<Chunk<G, A>>& chunks, A mu) : avx2_(use_avx2()) {
    for (const auto& c : chunks) {
      sources_.push_back({c.grad, c.residual, c.momentum, mu});
      sums_.push_back(c.sums);
    }
  }

  // Of what belongs to no group.
  void leave_sums(const std::vector<Piece>& pieces) const {
    for (const Piece& p : pieces)
      for (int64_t i = p.begin; i < p.end; ++i) sums_[p.chunk][i] = sources_[p.chunk][i];
  }

  // Finds the group's candidates; keeps the k largest of each side.
  void find(const std::vector<Piece>& pieces, int64_t numel, int64_t k, Search<A>& search) const {
    guess(pieces, numel, k, search);
    scan(pieces, search);
    if (search.finite && search.short_of_k()) {
      search.restart(1, 1);
      scan(pieces, search);
    }
    search.positive.keep_largest();
    if (search.heavier) search.negative.keep_largest();
  }

 private:
  // Sets the thresholds from a sample, generous by 3 standard deviations and 3 elements.
  void guess(const std::vector<Piece>& pieces, int64_t numel, int64_t k, Search<A>& search) const {
    search.restart(1, 1);
    if (numel < kSmall) return;
    const int64_t wanted = std::clamp<int64_t>(numel / 256, 1024, 16384);
    const int64_t stride = numel / (wanted / kRun);
    std::vector<Key<A>> positive, negative;
    int64_t skip = 0;
    for (const Piece& p : pieces) {
      int64_t i = p.begin + skip;
      for (; i < p.end; i += stride)
        for (int64_t j = i; j < std::min(i + kRun, p.end); ++j) {
          const A value = sources_[p.chunk][j];
          (search.heavier && std::signbit(value) ? negative : positive).push_back(magnitude(value));
        }
      skip = i - p.end;
    }
    const double sampled = static_cast<double>(positive.size() + negative.size());
    const double expected = sampled * static_cast<double>(k) / static_cast<double>(numel);
    const auto rank = static_cast<int64_t>(expected + 3 * std::sqrt(expected) + 3);
    search.restart(nth(positive, rank), nth(negative, rank));
  }

  static Key<A> nth(const std::vector<Key<A>>& keys, int64_t rank) {
    const auto count = static_cast<int64_t>(keys.size());
    return rank <= count ? kth_largest(keys.data(), count, rank) : 1;
  }

  void scan(const std::vector<Piece>& pieces, Search<A>& search) const {
    Hits<A> hits;
    for (const Piece& p : pieces)
      for (int64_t begin = p.begin; begin < p.end; begin += kBlock) {
        hits.count = 0;
        const int64_t end = std::min(begin + kBlock, p.end);
        scan_block(sources_[p.chunk], sums_[p.chunk], begin, end, p.base, search, hits);
        if (hits.count) search.take(hits);
        if (!search.finite) return;
      }
  }

  void scan_block(const Source& source, A* sums, int64_t begin, int64_t end, int64_t base,
                  const Search<A>& search, Hits<A>& hits) const {
#ifdef DDP_COMPRESS_AVX2
    if constexpr (std::is_same_v<A, float>) {
      const auto scan = sums ? scan_avx2<true, Source> : scan_avx2<false, Source>;
      if (avx2_ && is_aligned(sums)) return scan(source, sums, begin, end, base, search, hits);
    }
#endif
    scan_portable(source, sums, begin, end, base, search, hits);
  }

  std::vector<Source> sources_;
  std::vector<A*> sums_;
  bool avx2_;
};

template <typename G, typename A, bool kMomentum>
int64_t topk_impl(const std::vector<Chunk<G, A>>& chunks, A mu, const int64_t* bounds,
                  const int64_t* groups, int64_t params, const int64_t* ks, int64_t group_count,
                  const int64_t* salts, bool heavier, const Taken<A>& taken) {
  const Selector<G, A, kMomentum> selector(chunks, mu);
  if (wants_sums(chunks)) selector.leave_sums(left_out(chunks, bounds, groups, params));
  const auto take_nothing = [&] {
    std::fill(taken.counts, taken.counts + group_count, 0);
    if (heavier) std::fill(taken.means, taken.means + group_count, 0.0f);
    return int64_t{0};
  };
  int64_t total = take_nothing(), g = 0;
  for (const Group& group : cut(chunks, bounds, groups, params)) {
    Search<A> search(ks[g], {bounds, salts, params}, heavier);
    selector.find(group.pieces, group.numel, ks[g], search);
    *taken.finite = search.finite;
    if (!search.finite) return take_nothing();

    const Candidates<A>* chosen = &search.positive;
    if (heavier) {
      const double up = exact_mean(search.positive.values(), search.positive.count());
      const double down = exact_mean(search.negative.values(), search.negative.count());
      const bool is_up = up > -down;
      if (!is_up) chosen = &search.negative;
      taken.means[g] = static_cast<float>(is_up ? up : down);
    }
    const int64_t count = taken.counts[g++] = chosen->count();
    std::copy(chosen->indices(), chosen->indices() + count, taken.indices + total);
    std::copy(chosen->values(), chosen->values() + count, taken.values + total);
    total += count;
  }
  return total;
}

}  // namespace

template <typename G, typename A>
int64_t topk(const std::vector<Chunk<G, A>>& chunks, A mu, const int64_t* bounds,
             const int64_t* groups, int64_t params, const int64_t* ks, int64_t group_count,
             const int64_t* salts, bool heavier, const Taken<A>& taken) {
  const auto take = has_momentum(chunks) ? topk_impl<G, A, true> : topk_impl<G, A, false>;
  const int64_t count =
      take(chunks, mu, bounds, groups, params, ks, group_count, salts, heavier, taken);
  if (wants_sums(chunks)) end_streams();  // another thread may read them
  return count;
}

template decltype(topk<float, float>) topk<float, float>;
template decltype(topk<BFloat16, float>) topk<BFloat16, float>;
template decltype(topk<Half, float>) topk<Half, float>;
template decltype(topk<double, double>) topk<double, double>;

}  // namespace ddp_compress
