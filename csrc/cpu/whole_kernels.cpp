// Whole kernels of convolutions, and single entries, ranked by what they carry for their price.
//
// A tile of kernels at a time becomes integers, whose sums are exact in any order. All of a
// kernel's elements share its worth, but for the few that are worth more alone: so one number ranks
// a kernel, and what is worth the k-th most is found among kernels, by histograms, before any entry
// is looked at.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../kernels.h"
#include "kernel_tile.h"
#include "scratch.h"
#include "simd.h"

namespace ddp_compress {
namespace {

// A parameter, and where its kernels are.
template <typename A>
struct Parameter {
  const A* values;
  int64_t start, numel;  // its elements in the message
  int64_t m, stride;     // of a kernel
  int64_t group;         // or -1
  int64_t first = 0;     // its first kernel's number among all
  int64_t kernels = 0;   // that fit into the group; else 0
  int64_t at = 0;        // the first of these among those of all parameters

  const A* row(int64_t kernel) const {
    return values + (stride == 1 ? kernel * m : kernel / stride * stride * m + kernel % stride);
  }
  // Where an element lies that is the place-th, kernel after kernel.
  int64_t position(int64_t place) const {
    return stride == 1 ? place : row(place / m) - values + place % m * stride;
  }
};

template <typename A>
std::vector<Parameter<A>> parameters_of(const KernelValues<A>& given) {
  std::vector<Parameter<A>> all;
  const KernelTables& tables = given.tables;
  size_t chunk = 0;
  int64_t base = 0, first = 0, at = 0;
  for (int64_t p = 0; p < tables.params; ++p) {
    const int64_t start = tables.bounds[p], numel = tables.bounds[p + 1] - start;
    while (numel > 0 && start >= base + given.chunks[chunk].numel)
      base += given.chunks[chunk++].numel;
    Parameter<A> each{numel > 0 ? given.chunks[chunk].values + (start - base) : nullptr,
                      start,
                      numel,
                      tables.numels[p],
                      tables.strides[p],
                      given.groups[p]};
    const int64_t kernels = each.m > 1 ? numel / each.m : 0;
    each.first = first;
    each.at = at;
    if (each.group >= 0 && each.m <= given.ks[each.group]) each.kernels = kernels;
    first += kernels;
    at += each.kernels;
    all.push_back(each);
  }
  return all;
}

// The tile of kernels from `begin` on, `count` of them.
template <typename A, typename W>
DDP_COMPRESS_INLINE bool fill(Tile<A, W>& tile, const Parameter<A>& param, int64_t begin,
                              int64_t count) {
  const A* rows[kTile];
  for (int64_t l = 0; l < count; ++l) rows[l] = param.row(begin + l);
  return tile.fill(rows, count, param.m, param.stride);
}

// Magnitudes, as bits that order alike.
template <typename W, typename A>
DDP_COMPRESS_INLINE void weigh(const Parameter<A>& param, int64_t* keys) {
  Tile<A, W> tile(param.m);
  for (int64_t begin = 0; begin < param.kernels; begin += kTile) {
    const int64_t count = std::min(kTile, param.kernels - begin);
    const bool finite = fill(tile, param, begin, count);
    for (int64_t l = 0; l < count; ++l)
      keys[begin + l] = finite ? std::bit_cast<int64_t>(tile.mass[l] * tile.unit[l]) : 0;
  }
}

// What kernels are worth in the best way for them.
struct Best {
  double* worth;
  double* most;  // or what the largest of the elements is worth by itself, if that is more
  double* carried;
  int32_t* way;
};

// The best of the ways seen so far, of a tile.
struct Offers {
  double worth[kTile], carried[kTile] = {}, way[kTile] = {};

  DDP_COMPRESS_INLINE void begin() { std::fill(worth, worth + kTile, -1.0); }  // less than any
  DDP_COMPRESS_INLINE void take(const double* sums, double sign, const double* unit, double price,
                                int64_t number) {
    const auto as_double = static_cast<double>(number);
    for (int64_t l = 0; l < kTile; ++l) {
      const double carries = std::max(sums[l] * sign, 0.0) * unit[l];
      const double each = carries / price;
      const bool better = each > worth[l];
      worth[l] = either(better, each, worth[l]);
      carried[l] = either(better, carries, carried[l]);
      way[l] = either(better, as_double, way[l]);
    }
  }

 private:
  // By bits: a store that may not be is slow on some machines.
  DDP_COMPRESS_INLINE static double either(bool first, double a, double b) {
    const uint64_t mask = -static_cast<uint64_t>(first);
    return std::bit_cast<double>((std::bit_cast<uint64_t>(a) & mask) |
                                 (std::bit_cast<uint64_t>(b) & ~mask));
  }
};

struct Ways {
  const double* patterns;  // [count, m]
  int64_t count;
  const double* prices;  // [2 * count + 1]
  double single;
};

// How well a pattern of signs fits.
template <typename A, typename W>
DDP_COMPRESS_INLINE void fit(const Tile<A, W>& tile, const double* pattern, int64_t m,
                             double* fits) {
  W sums[kTile] = {};
  for (int64_t w = 0; w < m; ++w) {
    const auto sign = static_cast<W>(pattern[w]);
    for (int64_t l = 0; l < kTile; ++l) sums[l] += sign * tile.whole[w * kTile + l];
  }
  std::copy(sums, sums + kTile, fits);
}

// Returns whether all of it is finite.
template <typename W, typename A>
DDP_COMPRESS_INLINE bool price(const Parameter<A>& param, const Ways& ways, const Best& out) {
  constexpr double kFinite = std::numeric_limits<double>::max();
  Tile<A, W> tile(param.m);
  Offers best;
  std::vector<double> fits(static_cast<size_t>(ways.count * kTile));
  bool finite = true;
  for (int64_t begin = 0; begin < param.kernels; begin += kTile) {
    const int64_t count = std::min(kTile, param.kernels - begin);
    if (!fill(tile, param, begin, count)) return false;
    best.begin();
    for (int64_t s = 0; s < ways.count; ++s) {
      fit(tile, ways.patterns + s * param.m, param.m, fits.data() + s * kTile);
      best.take(fits.data() + s * kTile, 1.0, tile.unit, ways.prices[s], s);
    }
    for (int64_t s = 0, turned = ways.count; s < ways.count; ++s, ++turned)
      best.take(fits.data() + s * kTile, -1.0, tile.unit, ways.prices[turned], turned);
    best.take(tile.mass, 1.0, tile.unit, ways.prices[2 * ways.count], 2 * ways.count);
    for (int64_t l = 0; l < count; ++l) {
      const double alone = static_cast<double>(std::bit_cast<A>(tile.largest[l])) / ways.single;
      const double most = std::max(best.worth[l], alone);
      finite &= most <= kFinite;
      out.worth[begin + l] = best.worth[l];
      out.most[begin + l] = most;
      out.carried[begin + l] = best.carried[l];
      out.way[begin + l] = static_cast<int32_t>(best.way[l]);
    }
  }
  return finite;
}

template <typename A>
DDP_COMPRESS_INLINE void weigh_any(const Parameter<A>& param, int64_t* keys) {
  if constexpr (std::is_same_v<A, float>)
    if (param.m <= kMostInt32) return weigh<int32_t>(param, keys);
  weigh<double>(param, keys);
}
template <typename A>
DDP_COMPRESS_INLINE bool price_any(const Parameter<A>& param, const Ways& ways, const Best& out) {
  if constexpr (std::is_same_v<A, float>)
    if (param.m <= kMostInt32) return price<int32_t>(param, ways, out);
  return price<double>(param, ways, out);
}
template <typename A>
void weigh_portable(const Parameter<A>& param, int64_t* keys) {
  weigh_any(param, keys);
}
template <typename A>
bool price_portable(const Parameter<A>& param, const Ways& ways, const Best& out) {
  return price_any(param, ways, out);
}
#ifdef DDP_COMPRESS_AVX2
template <typename A>
DDP_COMPRESS_TARGET_AVX2 void weigh_avx2(const Parameter<A>& param, int64_t* keys) {
  weigh_any(param, keys);
}
template <typename A>
DDP_COMPRESS_TARGET_AVX2 bool price_avx2(const Parameter<A>& param, const Ways& ways,
                                         const Best& out) {
  return price_any(param, ways, out);
}
#endif

// So many entries of a worth.
struct Event {
  double worth;
  int64_t entries;
};

// What is taken: all that is worth more, and the first `ties` of equals. Nothing is worth less than
// 0, and zeros are not taken.
struct Cut {
  double worth = 0.0;
  int64_t ties = 0;
};

// The k-th largest worth, digit after digit; 0 where there are fewer.
Cut kth(const std::vector<Event>& events, int64_t k) {
  constexpr int kDigits = 5, kDigit = 13;  // the first is an exponent's 11 bits, and the sign
  std::vector<int64_t> bins(size_t{1} << kDigit);
  uint64_t key = 0;
  for (int shift = (kDigits - 1) * kDigit; shift >= 0; shift -= kDigit) {
    const int above = std::min(shift + kDigit, 63);
    std::fill(bins.begin(), bins.end(), 0);
    for (const Event& each : events) {
      const auto bits = std::bit_cast<uint64_t>(each.worth);
      if ((bits ^ key) >> above == 0) bins[bits >> shift & (bins.size() - 1)] += each.entries;
    }
    size_t bin = bins.size() - 1;
    for (; bins[bin] < k; --bin) {
      if (bin == 0) return {};
      k -= bins[bin];
    }
    key |= uint64_t{bin} << shift;
  }
  return {std::bit_cast<double>(key), k};
}

constexpr size_t kAhead = 16;  // of kernels that are read, those that are asked for

inline void prefetch(const void* data) {
#ifdef __GNUC__
  __builtin_prefetch(data);
#endif
}

// One of so many kernels, or elements, is in a sample. It is prime: channels come in powers of two.
constexpr int64_t kSampled = 61;
constexpr int64_t kSmall = 65536;  // elements, of which no sample is taken

template <typename A>
class Ranking {
 public:
  Ranking(const KernelValues<A>& given, const KernelPrices& prices)
      : params_(parameters_of(given)),
        groups_(static_cast<size_t>(given.group_count)),
        prices_(prices),
        count_(params_.empty() ? 0 : params_.back().at + params_.back().kernels),
        worth_(count_),
        most_(count_),
        carried_(count_),
        way_(count_) {
    for (size_t p = 0; p < params_.size(); ++p)
      if (params_[p].group >= 0) groups_[static_cast<size_t>(params_[p].group)].push_back(p);
  }

  // Returns whether all of it is finite.
  bool find_worth() const {
    auto one = price_portable<A>;
#ifdef DDP_COMPRESS_AVX2
    if (use_avx2()) one = price_avx2<A>;
#endif
    for (const auto& group : groups_)
      for (const size_t p : group) {
        const Parameter<A>& param = params_[p];
        const Best out{worth_.get() + param.at, most_.get() + param.at, carried_.get() + param.at,
                       way_.get() + param.at};
        if (!(param.kernels ? one(param, ways_of(p), out) : singles_are_finite(param, p)))
          return false;
      }
    return true;
  }

  // To be called once all worth is known.
  RankedKernels<A> take(const int64_t* ks) const {
    std::vector<Cut> cuts;
    for (size_t g = 0; g < groups_.size(); ++g) cuts.push_back(cut_of(groups_[g], ks[g]));
    RankedKernels<A> found;
    found.values.reserve(static_cast<size_t>(std::accumulate(ks, ks + groups_.size(), int64_t{0})));
    for (size_t p = 0; p < params_.size(); ++p) {
      if (params_[p].group < 0) continue;
      Cut& cut = cuts[static_cast<size_t>(params_[p].group)];
      const size_t before = found.singles.size();
      params_[p].kernels ? take_kernels(p, cut, found) : take_singles(p, cut, found);
      if (params_[p].stride > 1) std::sort(found.singles.begin() + before, found.singles.end());
    }
    return found;
  }

 private:
  using Members = std::vector<size_t>;

  Ways ways_of(size_t p) const {
    const int64_t ways = 2 * prices_.patterns + 1;
    const double* patterns = nullptr;
    for (const auto& [m, data] : prices_.sizes)
      if (m == params_[p].m) patterns = data;
    return {patterns, prices_.patterns, prices_.ways + static_cast<int64_t>(p) * ways,
            prices_.singles[p]};
  }

  bool singles_are_finite(const Parameter<A>& param, size_t p) const {
    bool finite = true;
    A largest = 0;
    for (int64_t i = 0; i < param.numel; ++i) {
      const A each = std::abs(param.values[i]);
      finite &= each <= std::numeric_limits<A>::max();
      largest = std::max(largest, each);
    }
    return finite &&
           static_cast<double>(largest) / prices_.singles[p] <= std::numeric_limits<double>::max();
  }

  // A sample guesses a floor below which nothing is taken; it decides the speed alone.
  Cut cut_of(const Members& group, int64_t k) const {
    std::vector<Event> above;
    for (double floor = guess(group, k);; floor = 0.0) {
      int64_t found = 0;
      events(group, floor, [&](double worth, int64_t entries) {
        found += entries;
        if (above.empty() || above.back().worth != worth) above.push_back({worth, 0});
        above.back().entries += entries;
      });
      if (found >= k || floor == 0.0) break;
      above.clear();
    }
    return kth(above, k);
  }

  // Generous by 3 standard deviations and 3 kernels.
  double guess(const Members& group, int64_t k) const {
    std::vector<Event> sample;
    int64_t numel = 0, largest = 1, skip = 0;
    for (const size_t p : group) {
      const Parameter<A>& param = params_[p];
      const int64_t m = param.kernels ? param.m : 1, count = param.numel / m;
      int64_t i = skip;
      for (; i < count; i += kSampled)
        sample.push_back(
            {param.kernels ? worth_[param.at + i] : alone(param.values + i, prices_.singles[p]),
             m});
      skip = i - count;
      numel += param.numel;
      largest = std::max(largest, m);
    }
    if (numel < kSmall) return 0.0;
    const double expected = static_cast<double>(k) / kSampled;
    const double spread = std::sqrt(expected * static_cast<double>(largest));
    return kth(sample, static_cast<int64_t>(expected + 3 * spread) + 3 * largest).worth;
  }

  // All that are worth `floor` or more.
  template <typename F>
  void events(const Members& group, double floor, F f) const {
    for (const size_t p : group) {
      const Parameter<A>& param = params_[p];
      const double single = prices_.singles[p];
      for (int64_t j = 0, i = param.at; j < param.kernels; ++j, ++i) {
        if (most_[i] < floor) continue;
        if (most_[i] > worth_[i]) {
          for (int64_t w = 0; w < param.m; ++w)
            one(std::max(alone(param.row(j) + w * param.stride, single), worth_[i]), floor, f);
        } else if (worth_[i] > 0) {
          f(worth_[i], param.m);
        }
      }
      if (param.kernels == 0)
        for (int64_t i = 0; i < param.numel; ++i) one(alone(param.values + i, single), floor, f);
    }
  }

  template <typename F>
  static void one(double worth, double floor, F f) {
    if (worth >= floor && worth > 0) f(worth, int64_t{1});
  }

  static double alone(const A* value, double single) {
    return std::abs(static_cast<double>(*value)) / single;
  }

  static bool is_taken(double worth, Cut& cut) {
    return worth > cut.worth || (worth == cut.worth && cut.ties-- > 0);
  }

  void take_kernels(size_t p, Cut& cut, RankedKernels<A>& found) const {
    const Parameter<A>& param = params_[p];
    const double* const patterns = ways_of(p).patterns;
    const size_t first = found.kernels.size();
    for (int64_t j = 0, i = param.at; j < param.kernels; ++j, ++i) {
      if (most_[i] < cut.worth || (most_[i] == cut.worth && cut.ties <= 0)) continue;
      if (worth_[i] > cut.worth || takes_all(p, j, cut, found.singles))
        found.kernels.push_back(static_cast<int32_t>(param.first + j));
    }
    const auto row = [&](size_t i) { return param.row(found.kernels[i] - param.first); };
    for (size_t i = first; i < found.kernels.size(); ++i) {
      prefetch(row(std::min(i + kAhead, found.kernels.size() - 1)));  // they lie far apart
      send(p, found.kernels[i] - param.first, patterns, found);
    }
  }

  // Whether all elements of a kernel are taken, or else which of them alone.
  bool takes_all(size_t p, int64_t kernel, Cut& cut, std::vector<int32_t>& singles) const {
    const Parameter<A>& param = params_[p];
    const double worth = worth_[param.at + kernel];
    const size_t before = singles.size();
    int64_t taken = 0;
    for (int64_t w = 0; w < param.m; ++w) {
      const double own = alone(param.row(kernel) + w * param.stride, prices_.singles[p]);
      if (!is_taken(std::max(own, worth), cut)) continue;
      ++taken;
      if (own > worth)
        singles.push_back(static_cast<int32_t>(param.start + param.position(kernel * param.m + w)));
    }
    if (taken == param.m) singles.resize(before);
    return taken == param.m;
  }

  void send(size_t p, int64_t kernel, const double* patterns, RankedKernels<A>& found) const {
    const Parameter<A>& param = params_[p];
    const int64_t i = param.at + kernel, way = way_[i], count = prices_.patterns;
    const double magnitude = carried_[i] / static_cast<double>(param.m);
    const A* const row = param.row(kernel);
    found.ways.push_back(static_cast<int32_t>(way));
    if (way == 2 * count) {
      const auto value = static_cast<A>(magnitude);  // nothing foretells the signs: no branch
      for (int64_t w = 0; w < param.m; ++w)
        found.values.push_back(value * static_cast<A>(1 - 2 * (row[w * param.stride] < 0)));
    } else {
      const double* const pattern = patterns + way % count * param.m;
      const double signed_one = way < count ? magnitude : -magnitude;
      for (int64_t w = 0; w < param.m; ++w)
        found.values.push_back(static_cast<A>(pattern[w] * signed_one));
    }
  }

  void take_singles(size_t p, Cut& cut, RankedKernels<A>& found) const {
    const Parameter<A>& param = params_[p];
    for (int64_t place = 0; place < param.numel; ++place) {
      const int64_t at = param.position(place);
      if (is_taken(alone(param.values + at, prices_.singles[p]), cut))
        found.singles.push_back(static_cast<int32_t>(param.start + at));
    }
  }

  std::vector<Parameter<A>> params_;
  std::vector<Members> groups_;
  const KernelPrices& prices_;
  int64_t count_;
  Scratch<double> worth_, most_, carried_;
  Scratch<int32_t> way_;
};

}  // namespace

template <typename A>
std::vector<A> largest_kernels(const KernelValues<A>& given, int64_t m, int64_t count) {
  auto one = weigh_portable<A>;
#ifdef DDP_COMPRESS_AVX2
  if (use_avx2()) one = weigh_avx2<A>;
#endif
  std::vector<Parameter<A>> mine;
  int64_t total = 0;
  for (Parameter<A>& each : parameters_of(given))
    if (each.m == m && each.kernels) {
      each.at = total;
      total += each.kernels;
      mine.push_back(each);
    }
  const Scratch<int64_t> keys(total);
  for (const auto& param : mine) one(param, keys.get() + param.at);
  std::vector<int64_t> chosen(static_cast<size_t>(std::min(count, total)));
  largest(keys.get(), total, count, chosen.data());
  std::vector<A> rows;
  auto param = mine.begin();
  for (const int64_t each : chosen) {
    while (each >= param->at + param->kernels) ++param;
    const A* const row = param->row(each - param->at);
    for (int64_t w = 0; w < m; ++w) rows.push_back(row[w * param->stride]);
  }
  return rows;
}

template <typename A>
RankedKernels<A> rank_kernels(const KernelValues<A>& given, const KernelPrices& prices) {
  const Ranking<A> ranking(given, prices);
  return ranking.find_worth() ? ranking.take(given.ks) : RankedKernels<A>{};
}

template decltype(largest_kernels<float>) largest_kernels<float>;
template decltype(largest_kernels<double>) largest_kernels<double>;
template decltype(rank_kernels<float>) rank_kernels<float>;
template decltype(rank_kernels<double>) rank_kernels<double>;

}  // namespace ddp_compress
