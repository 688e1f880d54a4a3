// Exact top-k of the accumulated gradient in one pass over memory.
//
// A sample guesses a threshold a little below the k-th largest value. One scan then reads the
// gradient and its memory, adds them in registers and keeps the few positions above the threshold;
// the k largest of those are the answer. Nothing is written but the answer, and the sums and the
// momentum where they are wanted. The guess decides the speed alone: too many candidates raise the
// threshold on the way, too few cost a second scan.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../kernels.h"
#include "../pieces.h"
#include "candidates.h"
#include "scan.h"

namespace ddp_compress {
namespace {

// Below this a scan's candidates are cheaper than a sample.
constexpr int64_t kSmall = 8192;
constexpr int64_t kRun = 16;  // neighbours sampled together: one cache line of fp32

template <typename G, typename A, bool kMomentum>
class Selector {
 public:
  using Source = Accumulated<G, A, kMomentum>;

  Selector(const std::vector<Chunk<G, A>>& chunks, A mu, bool has_salts)
      : avx2_(use_avx2()), avx512_(use_avx512()), has_salts_(has_salts) {
    for (const auto& c : chunks)
      sources_.push_back({c.grad, c.residual, c.momentum, mu, c.sums, c.next_momentum});
  }

  // Of what belongs to no group.
  void leave_sums(const std::vector<Piece>& pieces) const {
    for (const Piece& p : pieces)
      for (int64_t i = p.begin; i < p.end; ++i) sources_[p.chunk].leave(i);
  }

  // Finds the group's candidates; keeps the k largest of each side.
  void find(const std::vector<Piece>& pieces, int64_t numel, int64_t k, Search<A>& search) const {
    guess(pieces, numel, k, search);
    scan(pieces, search);
    if (search.finite && search.short_of_k()) {
      search.restart({}, {});
      scan(pieces, search);
    }
    search.positive.keep_largest();
    if (search.heavier) search.negative.keep_largest();
  }

 private:
  // Sets the thresholds from a sample, generous by 3 standard deviations and 3 elements.
  void guess(const std::vector<Piece>& pieces, int64_t numel, int64_t k, Search<A>& search) const {
    search.restart({}, {});
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
          (search.heavier && std::signbit(value) ? negative : positive).push_back(key_of(value));
        }
      skip = i - p.end;
    }
    const double sampled = static_cast<double>(positive.size() + negative.size());
    const double expected = sampled * static_cast<double>(k) / static_cast<double>(numel);
    const auto rank = static_cast<int64_t>(expected + 3 * std::sqrt(expected) + 3);
    search.restart(threshold(positive, rank), threshold(negative, rank));
  }

  // What `rank` keys of a sample reach. Where many are equal there, so large a share of hashes.
  Threshold<A> threshold(const std::vector<Key<A>>& keys, int64_t rank) const {
    const auto count = static_cast<int64_t>(keys.size());
    if (rank > count) return {};
    const Key<A> floor = kth_largest(keys.data(), count, rank);
    const auto equals = std::count(keys.begin(), keys.end(), floor);
    const int64_t over = std::count_if(keys.begin(), keys.end(), [&](auto k) { return k > floor; });
    // Hashes of all places cost more than a few equals too many; zeros are never taken.
    const bool worth_it = has_salts_ && floor > 0 && 8 * equals >= count;
    if (!worth_it || rank - over >= equals) return {floor};
    const double share = static_cast<double>(rank - over) / static_cast<double>(equals);
    return {floor, static_cast<uint32_t>((1 - share) * kTopHash)};
  }

  void scan(const std::vector<Piece>& pieces, Search<A>& search) const {
    Hits<A> hits;
    for (const Piece& p : pieces)
      for (int64_t begin = p.begin; begin < p.end; begin += kBlock) {
        hits.count = 0;
        const int64_t end = std::min(begin + kBlock, p.end);
        scan_block(sources_[p.chunk], begin, end, p.base, search, hits);
        if (hits.count == 0) continue;
        hits.close();
        search.take(hits);
        if (!search.finite) return;
      }
  }

  void scan_block(const Source& source, int64_t begin, int64_t end, int64_t base,
                  const Search<A>& search, Hits<A>& hits) const {
#ifdef DDP_COMPRESS_AVX2
    if constexpr (std::is_same_v<A, float>) {
      const bool aligned = is_aligned(source.sums) && is_aligned(source.next_momentum);
      if (avx512_ && aligned) return scan_wide(source, begin, end, base, search, hits);
      const auto narrow = source.sums ? scan_avx2<true, Source> : scan_avx2<false, Source>;
      if (avx2_ && aligned) return narrow(source, begin, end, base, search, hits);
    }
#endif
    scan_portable(source, begin, end, base, search, hits);
  }

#ifdef DDP_COMPRESS_AVX2
  void scan_wide(const Source& source, int64_t begin, int64_t end, int64_t base,
                 const Search<float>& search, Hits<float>& hits) const {
    if (!search.has_ties()) {
      const auto scan =
          source.sums ? scan_avx512<true, false, Source> : scan_avx512<false, false, Source>;
      return scan(source, begin, end, base, search, nullptr, hits);
    }
    uint32_t hashes[kBlock];
    search.positive.ties().hash_range(base + begin, end - begin, hashes);
    const auto scan =
        source.sums ? scan_avx512<true, true, Source> : scan_avx512<false, true, Source>;
    scan(source, begin, end, base, search, hashes, hits);
  }
#endif

  std::vector<Source> sources_;
  bool avx2_, avx512_, has_salts_;
};

template <typename G, typename A, bool kMomentum>
int64_t topk_impl(const std::vector<Chunk<G, A>>& chunks, A mu, const int64_t* bounds,
                  const int64_t* groups, int64_t params, const int64_t* ks, int64_t group_count,
                  const int64_t* salts, bool heavier, const Taken<A>& taken) {
  const Selector<G, A, kMomentum> selector(chunks, mu, salts != nullptr);
  const Fastest<A> fastest;
  const auto mean = fastest_exact_mean<A>();
  if (wants_sums(chunks)) selector.leave_sums(left_out(chunks, bounds, groups, params));
  const auto take_nothing = [&] {
    std::fill(taken.counts, taken.counts + group_count, 0);
    if (heavier) std::fill(taken.means, taken.means + group_count, 0.0f);
    return int64_t{0};
  };
  int64_t total = take_nothing(), g = 0;
  for (const Group& group : cut(chunks, bounds, groups, params)) {
    Search<A> search(ks[g], {bounds, salts, params}, heavier, fastest);
    selector.find(group.pieces, group.numel, ks[g], search);
    *taken.finite = search.finite;
    if (!search.finite) return take_nothing();

    const Candidates<A>* chosen = &search.positive;
    if (heavier) {
      const double up = mean(search.positive.values(), search.positive.count());
      const double down = mean(search.negative.values(), search.negative.count());
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
