// Exact top-k of the accumulated gradient in one pass over memory.
//
// A sample guesses a threshold a little below the k-th largest value. One scan then reads the
// gradient and its memory, adds them in registers and keeps the few positions above the threshold;
// the k largest of those are the answer. Nothing is written but the answer. The guess decides the
// speed alone: too many candidates raise the threshold on the way, too few cost a second scan.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "../kernels.h"
#include "simd.h"

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

// The k-th largest key (k counts from 1), by histograms of ever finer key ranges.
template <typename K>
K kth_largest(std::vector<K> keys, int64_t k) {
  constexpr int kBits = 11;
  while (keys.size() > 1024) {
    const auto [low, high] = std::minmax_element(keys.begin(), keys.end());
    const K base = *low;
    const int shift = std::max(0, static_cast<int>(std::bit_width(*high - base)) - kBits);
    std::array<int64_t, size_t{1} << kBits> histogram{};
    for (K key : keys) ++histogram[(key - base) >> shift];
    size_t bin = histogram.size() - 1;
    for (; histogram[bin] < k; --bin) k -= histogram[bin];
    std::erase_if(keys, [=](K key) { return ((key - base) >> shift) != bin; });
    if (shift == 0) return keys[0];
  }
  std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end(), std::greater<K>());
  return keys[k - 1];
}

// The candidates for the k largest magnitudes, in ascending position.
template <typename A>
class Candidates {
 public:
  explicit Candidates(int64_t k) : k_(k), capacity_(2 * k + kBlock) {}

  Key<A> floor() const { return floor_; }
  A threshold() const { return std::bit_cast<A>(floor_); }
  bool short_of_k() const { return static_cast<int64_t>(keys_.size()) < k_; }

  // Starts over, admitting keys from `floor` up. Zeros are never admitted.
  void restart(Key<A> floor) {
    indices_.clear();
    keys_.clear();
    floor_ = std::clamp<Key<A>>(floor, 1, kInfinity<A>);
  }

  void push(int32_t index, Key<A> key) {
    if (key < floor_) return;
    indices_.push_back(index);
    keys_.push_back(key);
  }

  // Between blocks: too many candidates mean that the threshold can rise.
  void prune() {
    if (static_cast<int64_t>(keys_.size()) > capacity_) floor_ = keep_largest() + 1;
  }

  // Keeps the k largest; of equal keys the first positions. Returns the smallest key kept.
  Key<A> keep_largest() {
    if (static_cast<int64_t>(keys_.size()) <= k_) return floor_ - 1;
    const Key<A> kth = kth_largest(keys_, k_);
    int64_t ties = k_;
    for (Key<A> key : keys_) ties -= key > kth;
    size_t kept = 0;
    for (size_t i = 0; i < keys_.size(); ++i) {
      if (keys_[i] < kth || (keys_[i] == kth && ties-- <= 0)) continue;
      indices_[kept] = indices_[i];
      keys_[kept++] = keys_[i];
    }
    indices_.resize(kept);
    keys_.resize(kept);
    return kth;
  }

  const std::vector<int32_t>& indices() const { return indices_; }
  const std::vector<Key<A>>& keys() const { return keys_; }

 private:
  int64_t k_;
  int64_t capacity_;
  Key<A> floor_ = 1;
  std::vector<int32_t> indices_;
  std::vector<Key<A>> keys_;
};

// What one scan looks for: the k largest magnitudes, or the k largest on either side of zero.
template <typename A>
struct Search {
  bool heavier;
  Candidates<A> positive;  // all magnitudes when not `heavier`
  Candidates<A> negative;
  bool finite = true;

  Search(int64_t k, bool heavier) : heavier(heavier), positive(k), negative(heavier ? k : 0) {}

  Candidates<A>& side(A value) {
    return heavier && std::signbit(value) ? negative : positive;
  }

  // Scans look for value >= above or value <= below.
  A above() const { return positive.threshold(); }
  A below() const { return heavier ? -negative.threshold() : -positive.threshold(); }

  void visit(int32_t index, A value) {
    const Key<A> key = magnitude(value);
    if (key >= kInfinity<A>) {
      finite = false;
    } else {
      side(value).push(index, key);
    }
  }

  void prune() {
    positive.prune();
    if (heavier) negative.prune();
  }

  bool short_of_k() const {
    return positive.short_of_k() || (heavier && negative.short_of_k());
  }

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

template <typename Source, typename A>
void scan_portable(const Source& source, int64_t begin, int64_t end, int64_t base,
                   Search<A>& search) {
  const A above = search.above(), below = search.below();
  for (int64_t i = begin; i < end; ++i) {
    const A value = source[i];
    // Written so that a NaN is visited too.
    if (!(value < above && value > below)) search.visit(static_cast<int32_t>(base + i), value);
  }
}

#ifdef DDP_COMPRESS_AVX2
template <typename Source>
DDP_COMPRESS_TARGET_AVX2 void scan_avx2(const Source& source, int64_t begin, int64_t end,
                                        int64_t base, Search<float>& search) {
  const __m256 above = _mm256_set1_ps(search.above()), below = _mm256_set1_ps(search.below());
  int64_t i = begin;
  for (; i + 32 <= end; i += 32) {
    __m256 value[4], hit[4];
    for (int j = 0; j < 4; ++j) {
      value[j] = source.load8(i + 8 * j);
      hit[j] = _mm256_or_ps(_mm256_cmp_ps(value[j], above, _CMP_NLT_UQ),
                            _mm256_cmp_ps(value[j], below, _CMP_NGT_UQ));
    }
    const __m256 any = _mm256_or_ps(_mm256_or_ps(hit[0], hit[1]), _mm256_or_ps(hit[2], hit[3]));
    if (!_mm256_movemask_ps(any)) continue;
    for (int j = 0; j < 4; ++j) {
      unsigned mask = static_cast<unsigned>(_mm256_movemask_ps(hit[j]));
      if (!mask) continue;
      alignas(32) float lane[8];
      _mm256_store_ps(lane, value[j]);
      for (; mask; mask &= mask - 1) {
        const int b = std::countr_zero(mask);
        search.visit(static_cast<int32_t>(base + i + 8 * j + b), lane[b]);
      }
    }
  }
  scan_portable(source, i, end, base, search);
}
#endif

// Neighbouring elements of one chunk that belong to one group.
struct Piece {
  size_t chunk;
  int64_t begin, end;  // within the chunk
  int64_t base;        // the chunk's first position in the message
};

template <typename G, typename A, bool kMomentum>
class Selector {
 public:
  using Source = Accumulated<G, A, kMomentum>;

  Selector(const std::vector<Chunk<G, A>>& chunks, A mu) : avx2_(use_avx2()) {
    for (const auto& c : chunks) sources_.push_back({c.grad, c.residual, c.momentum, mu});
  }

  // Finds the group's candidates; keeps the k largest of each side.
  void find(const std::vector<Piece>& pieces, int64_t numel, int64_t k, Search<A>& search) const {
    guess(pieces, numel, k, search);
    scan(pieces, search);
    const bool guessed = search.positive.floor() > 1 || search.negative.floor() > 1;
    if (guessed && search.finite && search.short_of_k()) {
      search.restart(1, 1);
      scan(pieces, search);
    }
    search.positive.keep_largest();
    if (search.heavier) search.negative.keep_largest();
  }

  A value(size_t chunk, int64_t i) const { return sources_[chunk][i]; }

 private:
  // Sets the thresholds from a sample of about 1/64 of the group, 3 standard deviations generous.
  void guess(const std::vector<Piece>& pieces, int64_t numel, int64_t k, Search<A>& search) const {
    search.restart(1, 1);
    if (numel < kSmall) return;
    const int64_t wanted = std::clamp<int64_t>(numel / 64, 1024, 65536);
    const int64_t stride = numel / (wanted / kRun);
    std::vector<Key<A>> positive, negative;
    int64_t skip = 0;
    for (const Piece& p : pieces) {
      int64_t i = p.begin + skip;
      for (; i < p.end; i += stride)
        for (int64_t j = i; j < std::min(i + kRun, p.end); ++j) {
          const A value = sources_[p.chunk][j];
          (search.heavier && std::signbit(value) ? negative : positive)
              .push_back(magnitude(value));
        }
      skip = i - p.end;
    }
    const double sampled = static_cast<double>(positive.size() + negative.size());
    const double expected = sampled * static_cast<double>(k) / static_cast<double>(numel);
    const auto rank = static_cast<int64_t>(expected + 3 * std::sqrt(expected) + 3);
    search.restart(nth(positive, rank), nth(negative, rank));
  }

  static Key<A> nth(std::vector<Key<A>>& keys, int64_t rank) {
    return rank <= static_cast<int64_t>(keys.size()) ? kth_largest(std::move(keys), rank) : 1;
  }

  void scan(const std::vector<Piece>& pieces, Search<A>& search) const {
    for (const Piece& p : pieces)
      for (int64_t begin = p.begin; begin < p.end; begin += kBlock) {
        scan_block(sources_[p.chunk], begin, std::min(begin + kBlock, p.end), p.base, search);
        search.prune();
      }
  }

  void scan_block(const Source& source, int64_t begin, int64_t end, int64_t base,
                  Search<A>& search) const {
#ifdef DDP_COMPRESS_AVX2
    if constexpr (std::is_same_v<A, float>)
      if (avx2_) return scan_avx2(source, begin, end, base, search);
#endif
    scan_portable(source, begin, end, base, search);
  }

  std::vector<Source> sources_;
  bool avx2_;
};

struct Group {
  std::vector<Piece> pieces;
  int64_t numel = 0;
};

// Cuts the message into groups of pieces; neighbouring parameters of one group become one piece.
template <typename G, typename A>
std::vector<Group> cut(const std::vector<Chunk<G, A>>& chunks, const int64_t* bounds,
                       const int64_t* groups, int64_t params, int64_t* group_count) {
  *group_count = 0;
  for (int64_t p = 0; p < params; ++p) *group_count = std::max(*group_count, groups[p] + 1);
  std::vector<Group> result(static_cast<size_t>(*group_count));
  size_t chunk = 0;
  int64_t base = 0;
  for (int64_t p = 0; p < params; ++p) {
    for (int64_t at = bounds[p]; at < bounds[p + 1];) {
      while (at >= base + chunks[chunk].numel) base += chunks[chunk++].numel;
      const int64_t end = std::min(bounds[p + 1], base + chunks[chunk].numel);
      if (groups[p] >= 0) {
        Group& group = result[static_cast<size_t>(groups[p])];
        group.numel += end - at;
        if (!group.pieces.empty() && group.pieces.back().chunk == chunk &&
            group.pieces.back().end == at - base) {
          group.pieces.back().end = end - base;
        } else {
          group.pieces.push_back({chunk, at - base, end - base, base});
        }
      }
      at = end;
    }
  }
  return result;
}

template <typename G, typename A, bool kMomentum>
TopK<A> topk_impl(const std::vector<Chunk<G, A>>& chunks, A mu, const int64_t* bounds,
                  const int64_t* groups, int64_t params, const int64_t* ks, bool heavier) {
  const Selector<G, A, kMomentum> selector(chunks, mu);
  TopK<A> result;
  int64_t count;
  const auto cut_groups = cut(chunks, bounds, groups, params, &count);
  for (int64_t g = 0; g < count; ++g) {
    const Group& group = cut_groups[static_cast<size_t>(g)];
    Search<A> search(ks[g], heavier);
    selector.find(group.pieces, group.numel, ks[g], search);
    result.finite = result.finite && search.finite;

    const auto values_of = [&](const Candidates<A>& side) {
      std::vector<A> values;
      values.reserve(side.indices().size());
      auto piece = group.pieces.begin();
      for (int32_t index : side.indices()) {
        while (index >= piece->base + piece->end) ++piece;
        values.push_back(selector.value(piece->chunk, index - piece->base));
      }
      return values;
    };
    std::vector<A> values = values_of(search.positive);
    const std::vector<int32_t>* indices = &search.positive.indices();
    if (heavier) {
      std::vector<A> negative = values_of(search.negative);
      const double up = exact_mean(values.data(), static_cast<int64_t>(values.size()));
      const double down = -exact_mean(negative.data(), static_cast<int64_t>(negative.size()));
      if (!(up > down)) {
        values = std::move(negative);
        indices = &search.negative.indices();
      }
    }
    result.indices.insert(result.indices.end(), indices->begin(), indices->end());
    result.values.insert(result.values.end(), values.begin(), values.end());
  }
  return result;
}

}  // namespace

template <typename G, typename A>
TopK<A> topk(const std::vector<Chunk<G, A>>& chunks, A mu, const int64_t* bounds,
             const int64_t* groups, int64_t params, const int64_t* ks, bool heavier) {
  return chunks[0].momentum
             ? topk_impl<G, A, true>(chunks, mu, bounds, groups, params, ks, heavier)
             : topk_impl<G, A, false>(chunks, mu, bounds, groups, params, ks, heavier);
}

#define INSTANTIATE(G, A)                                                                  \
  template TopK<A> topk(const std::vector<Chunk<G, A>>&, A, const int64_t*, const int64_t*, \
                        int64_t, const int64_t*, bool);
INSTANTIATE(float, float)
INSTANTIATE(BFloat16, float)
INSTANTIATE(Half, float)
INSTANTIATE(double, double)
#undef INSTANTIATE

}  // namespace ddp_compress
