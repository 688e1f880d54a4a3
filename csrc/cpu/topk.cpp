// Exact top-k of the accumulated gradient in one pass over memory.
//
// A sample guesses a threshold a little below the k-th largest value. One scan then reads the
// gradient and its memory, adds them in registers and keeps the few positions above the threshold;
// the k largest of those are the answer. Nothing is written but the answer, and the sums and the
// momentum where they are wanted. The guess decides the speed alone: too many candidates raise the
// threshold on the way, too few cost a second scan.
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
constexpr int64_t kBlock = 8192;  // elements scanned between two looks at the threshold
constexpr int64_t kRun = 16;      // neighbours sampled together: one cache line of fp32

// Positions and values, in ascending position: what a scan found in one block.
template <typename A>
struct Hits {
  // Vectors may write or read up to sixteen entries past the last.
  std::array<int32_t, kBlock + 16> indices;
  std::array<A, kBlock + 16> values;
  int64_t count = 0;

  void push(int32_t index, A value) {
    indices[count] = index;
    values[count++] = value;
  }

  // So that vectors may read past the last: a zero is above nothing.
  void close() { std::fill_n(values.begin() + count, 8, A(0)); }
  int64_t whole_vectors() const { return (count + 7) / 8 * 8; }
};

// What decides between equal magnitudes: the larger hash of their places, or without salts, and of
// equal hashes, the first position.
struct Ties {
  const int64_t* bounds;
  const int64_t* salts;
  int64_t params;

  void hash(const int32_t* positions, int64_t count, uint32_t* hashes) const {
    hash_places(positions, count, bounds, salts, params, hashes);
  }
};

constexpr uint32_t kTopHash = std::numeric_limits<uint32_t>::max();

// Candidates are above the floor, or at it, with a hash above the bar.
template <typename A>
struct Threshold {
  Key<A> floor = 1;
  uint32_t bar = 0;
};

enum class Side { kBoth, kPositive, kNegative };

#ifdef DDP_COMPRESS_AVX2
// Row m lists the set bits of m: the lanes to move to the front.
constexpr auto kLanes = [] {
  std::array<std::array<int32_t, 8>, 256> table{};
  for (size_t mask = 0; mask < 256; ++mask)
    for (int32_t lane = 0, n = 0; lane < 8; ++lane)
      if (mask >> lane & 1) table[mask][static_cast<size_t>(n++)] = lane;
  return table;
}();
#endif

template <typename A>
DDP_COMPRESS_INLINE Key<A> largest_of(const A* values, int64_t count) {
  Key<A> largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, magnitude(values[i]));
  return largest;
}

template <typename A>
Key<A> largest_portable(const A* values, int64_t count) {
  return largest_of(values, count);
}

#ifdef DDP_COMPRESS_AVX2
template <typename A>
DDP_COMPRESS_TARGET_AVX2 Key<A> largest_avx2(const A* values, int64_t count) {
  return largest_of(values, count);
}
#endif

// Which hits become candidates: those of a side, and where there are hashes those that outdo the
// floor, or at the floor the bar.
template <typename A>
struct Admission {
  Side side;
  Key<A> floor;
  uint32_t bar;
  const uint32_t* hashes;  // of a block's hits; null where all of the side are admitted

  bool operator()(A value, int64_t i) const {
    const bool here = side == Side::kBoth || std::signbit(value) == (side == Side::kNegative);
    return here && (!hashes || magnitude(value) > floor || hashes[i] > bar);
  }
};

// Puts what is admitted of a block's hits behind `count` candidates; returns how many there are
// then. Stores may write up to eight entries past the last.
template <typename A>
int64_t append_portable(const Hits<A>& hits, const Admission<A>& admits, int32_t* indices,
                        A* values, int64_t count) {
  for (int64_t i = 0; i < hits.count; ++i) {
    indices[count] = hits.indices[i];
    values[count] = hits.values[i];
    count += admits(hits.values[i], i);
  }
  return count;
}

#ifdef DDP_COMPRESS_AVX2
DDP_COMPRESS_TARGET_AVX2 int64_t append_avx2(const Hits<float>& hits,
                                             const Admission<float>& admits, int32_t* indices,
                                             float* values, int64_t count) {
  const __m256i top = _mm256_set1_epi32(INT32_MIN), rest = _mm256_set1_epi32(INT32_MAX);
  const __m256i floor = _mm256_set1_epi32(static_cast<int>(admits.floor));
  const __m256i bar = _mm256_xor_si256(top, _mm256_set1_epi32(static_cast<int>(admits.bar)));
  const unsigned both = admits.side == Side::kBoth ? 255 : 0;
  const unsigned flipped = admits.side == Side::kPositive ? 255 : 0;
  const auto load = [](const auto* from) DDP_COMPRESS_TARGET_AVX2 {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  };
  for (int64_t i = 0; i < hits.count; i += 8) {
    const __m256 value = _mm256_loadu_ps(&hits.values[i]);
    unsigned mask = (static_cast<unsigned>(_mm256_movemask_ps(value)) ^ flipped) | both;
    mask &= 255u >> (8 - std::min<int64_t>(8, hits.count - i));
    if (admits.hashes) {
      const __m256i hash = _mm256_xor_si256(top, load(admits.hashes + i));
      const __m256i size = _mm256_and_si256(rest, _mm256_castps_si256(value));
      const __m256i over =
          _mm256_or_si256(_mm256_cmpgt_epi32(size, floor), _mm256_cmpgt_epi32(hash, bar));
      mask &= static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(over)));
      if (mask == 0) continue;  // as nearly always, where all are equal
    }
    const __m256i order = load(kLanes[mask].data());
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + count),
                        _mm256_permutevar8x32_epi32(load(&hits.indices[i]), order));
    _mm256_storeu_ps(values + count, _mm256_permutevar8x32_ps(value, order));
    count += std::popcount(mask);
  }
  return count;
}
#endif

// The fastest loops of this processor, asked for once.
template <typename A>
struct Fastest {
  decltype(&append_portable<A>) append = append_portable<A>;
  decltype(&largest_portable<A>) largest = largest_portable<A>;

  Fastest() {
#ifdef DDP_COMPRESS_AVX2
    if (!use_avx2()) return;
    largest = largest_avx2<A>;
    if constexpr (std::is_same_v<A, float>) append = append_avx2;
#endif
  }
};

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

  Key<A> floor() const { return floor_; }
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
    std::transform(values(), values() + count_, keys.get(), magnitude<A>);
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

  bool short_of_k() const { return positive.short_of_k() || (heavier && negative.short_of_k()); }

  void restart(Threshold<A> above, Threshold<A> below) {
    positive.restart(above);
    negative.restart(below);
  }

 private:
  Fastest<A> fastest_;
};

// residual + (mu * momentum + grad), one element or eight at a time.
template <typename G, typename A, bool kMomentum>
struct Accumulated {
  static constexpr bool kHasMomentum = kMomentum;

  const G* grad;
  const A* residual;
  const A* momentum;
  A mu;
  A* sums;  // or null
  A* next_momentum;

  // The sum of an element, which is left where it is wanted, and the momentum with it.
  A leave(int64_t i) const {
    const A mine = moved(i), value = residual[i] + mine;
    if (sums) sums[i] = value;
    if (kMomentum && next_momentum) next_momentum[i] = mine;
    return value;
  }

  A moved(int64_t i) const {
    const A g = static_cast<A>(grad[i]);
    return kMomentum ? mu * momentum[i] + g : g;
  }
  A operator[](int64_t i) const { return residual[i] + moved(i); }

#ifdef DDP_COMPRESS_AVX2
  DDP_COMPRESS_TARGET_AVX2 static __m256 widen(const float* p) { return _mm256_loadu_ps(p); }
  DDP_COMPRESS_TARGET_AVX2 static __m256 widen(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  DDP_COMPRESS_TARGET_AVX2 static __m256 widen(const BFloat16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  DDP_COMPRESS_TARGET_AVX2 __m256 moved8(int64_t i) const {
    const __m256 g = widen(grad + i);
    if constexpr (!kMomentum) return g;
    return _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(mu), _mm256_loadu_ps(momentum + i)), g);
  }

  // With a mask of all lanes, because without one a compiler warns of its own header.
  static constexpr __mmask16 kAll = 0xFFFF;
  DDP_COMPRESS_TARGET_AVX512 static __m512 widen16(const float* p) { return _mm512_loadu_ps(p); }
  DDP_COMPRESS_TARGET_AVX512 static __m512 widen16(const Half* p) {
    return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  DDP_COMPRESS_TARGET_AVX512 static __m512 widen16(const BFloat16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, half), 16));
  }
  DDP_COMPRESS_TARGET_AVX512 __m512 moved16(int64_t i) const {
    const __m512 g = widen16(grad + i);
    if constexpr (!kMomentum) return g;
    return _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(mu), _mm512_loadu_ps(momentum + i)), g);
  }
#endif
};

// Scans leave the sums where these are wanted, and the momentum with them.
template <typename Source, typename A>
void scan_portable(const Source& source, int64_t begin, int64_t end, int64_t base,
                   const Search<A>& search, Hits<A>& hits) {
  const A above = search.above(), below = search.below();
  for (int64_t i = begin; i < end; ++i) {
    const A value = source.leave(i);
    if (!(value < above && value > below)) hits.push(static_cast<int32_t>(base + i), value);
  }
}

#ifdef DDP_COMPRESS_AVX2
// Sums go past the caches: nobody reads them soon, and to read first what they replace, as a cache
// would, costs a quarter of the traffic.
template <bool kSums, typename Source>
DDP_COMPRESS_TARGET_AVX2 void scan_avx2(const Source source, int64_t begin, int64_t end,
                                        int64_t base, const Search<float>& search,
                                        Hits<float>& hits) {
  if constexpr (kSums) {
    const int64_t aligned = std::min(end, (begin + 7) / 8 * 8);
    scan_portable(source, begin, aligned, base, search, hits);
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
    const __m256 moved = source.moved8(i);
    const __m256 value = _mm256_add_ps(_mm256_loadu_ps(source.residual + i), moved);
    if constexpr (kSums) {
      _mm256_stream_ps(source.sums + i, value);
      if constexpr (Source::kHasMomentum) _mm256_stream_ps(source.next_momentum + i, moved);
    }
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
  scan_portable(source, i, end, base, search, hits);
}

template <bool kSums, typename Source>
DDP_COMPRESS_TARGET_AVX512 void scan_avx512(const Source source, int64_t begin, int64_t end,
                                            int64_t base, const Search<float>& search,
                                            Hits<float>& hits) {
  if constexpr (kSums) {
    const int64_t aligned = std::min(end, (begin + 15) / 16 * 16);
    scan_portable(source, begin, aligned, base, search, hits);
    begin = aligned;
  }
  const __m512 above = _mm512_set1_ps(search.above()), below = _mm512_set1_ps(search.below());
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int32_t* const indices = hits.indices.data();
  float* const values = hits.values.data();
  int64_t i = begin, count = hits.count;
#pragma GCC unroll 4
  for (; i + 16 <= end; i += 16) {
    const __m512 moved = source.moved16(i);
    const __m512 value = _mm512_add_ps(_mm512_loadu_ps(source.residual + i), moved);
    if constexpr (kSums) {
      _mm512_stream_ps(source.sums + i, value);
      if constexpr (Source::kHasMomentum) _mm512_stream_ps(source.next_momentum + i, moved);
    }
    const auto mask = static_cast<__mmask16>(_mm512_cmp_ps_mask(value, above, _CMP_NLT_UQ) |
                                             _mm512_cmp_ps_mask(value, below, _CMP_NGT_UQ));
    const __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(base + i)));
    _mm512_storeu_si512(indices + count, _mm512_maskz_compress_epi32(mask, index));
    _mm512_storeu_ps(values + count, _mm512_maskz_compress_ps(mask, value));
    count += std::popcount(unsigned{mask});
  }
  hits.count = count;
  scan_portable(source, i, end, base, search, hits);
}
#endif

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
          (search.heavier && std::signbit(value) ? negative : positive).push_back(magnitude(value));
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
    if (!has_salts_ || rank - over >= equals) return {floor};
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
      const auto narrow = source.sums ? scan_avx2<true, Source> : scan_avx2<false, Source>;
      const auto wide = source.sums ? scan_avx512<true, Source> : scan_avx512<false, Source>;
      const auto scan = avx512_ ? wide : narrow;
      if (avx2_ && is_aligned(source.sums) && is_aligned(source.next_momentum))
        return scan(source, begin, end, base, search, hits);
    }
#endif
    scan_portable(source, begin, end, base, search, hits);
  }

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
