// The search for the k-th largest entry, by histograms of ever finer bins.
//
// No two entries are equal: magnitudes decide, and between equal ones the ranks of their places.
// Bins are of magnitudes until a single one holds the k-th, and then of ranks.
#pragma once

#include <limits>

#include "../exact_mean.h"
#include "../tie_hash.h"
#include "grid.cuh"
#include "search.cuh"

namespace ddp_compress::cuda {

constexpr int kDigit = 11;  // bits that one histogram tells apart
constexpr int kBins = 1 << kDigit;

template <typename A>
constexpr uint64_t kInfinity =
    static_cast<uint64_t>(__builtin_bit_cast(Magnitude<A>, std::numeric_limits<A>::infinity()));

// Widths of bins, as powers of two: all magnitudes lie in bins of the widest; narrow ones reach
// from any floor to twice as much.
template <typename A>
constexpr int kWidest = std::numeric_limits<Magnitude<A>>::digits - kDigit;
template <typename A>
constexpr int kNarrow = std::numeric_limits<A>::digits - 1 - kDigit;

// How equals at the cut are told apart: by the larger hash of their places, or without salts, and
// of equal hashes, by the first position.
struct Ties {
  const int64_t* bounds;
  const int64_t* salts;
  int params;

  __device__ uint64_t rank(int32_t position) const {
    const uint64_t first = ~static_cast<uint32_t>(position);
    if (!salts) return first << 32;
    const int param = last_up_to(position, 0, params, [&](int i) { return bounds[i]; });
    const uint64_t hash = tie_hash(static_cast<uint64_t>(salts[param]),
                                   static_cast<uint64_t>(position - bounds[param]), 0);
    return hash << 32 | first;
  }
};

// The k-th largest is not below the cut. Bins start there; more lie above the last of them.
struct Cut {
  uint64_t magnitude;
  uint64_t fallback;  // a lower magnitude, if this one was guessed too high
  uint64_t rank;      // of that magnitude, if by rank
  int width;          // of a bin, as a power of two
  bool by_rank;
  bool done;       // all that is not below is taken
  unsigned taken;  // then: how many

  // An entry's bin; kBins above all bins, -1 below the cut.
  __device__ int bin(uint64_t entry, int32_t position, const Ties& ties) const {
    if (entry < magnitude) return -1;
    uint64_t distance = entry - magnitude;
    if (by_rank) {
      if (distance > 0) return kBins;
      const uint64_t own = ties.rank(position);
      if (own < rank) return -1;
      distance = own - rank;
    }
    distance >>= width;
    return distance < kBins ? static_cast<int>(distance) : kBins;
  }

  // The k-th lies in `bin`; `count` entries lie there and above.
  template <typename A>
  __device__ void enter(int bin, unsigned count, unsigned k) {
    (by_rank ? rank : magnitude) += static_cast<uint64_t>(bin) << width;
    taken = count;
    done = count == k;
    if (done) return;
    if (bin == kBins) {
      width = kWidest<A>;
    } else if (width > 0) {
      width = width > kDigit ? width - kDigit : 0;
    } else {
      by_rank = true;
      rank = 0;
      width = 64 - kDigit;
    }
  }

  // There are only `count` entries. That is all, unless the cut was a guess.
  template <typename A>
  __device__ void fall_short(unsigned count) {
    done = magnitude == 1;
    taken = count;
    start_at<A>(fallback < magnitude ? fallback : 1);
  }

  template <typename A>
  __device__ void start_at(uint64_t floor) {
    magnitude = floor;
    width = floor > 1 ? kNarrow<A> : kWidest<A>;
  }
};

// Raises a cut to the bin that holds the k-th, or lowers one that was guessed too high. Every
// thread of the block comes here.
template <int kThreads, typename A>
__device__ void narrow(Cut& cut, const unsigned* bins, unsigned k) {
  constexpr int kOwn = kBins / kThreads;  // a thread's bins, the first thread's at the top
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kOwn;
  const unsigned above = bins[kBins];
  unsigned own = 0, total;
  for (int i = 0; i < kOwn; ++i) own += bins[top - i];
  unsigned seen = above + exclusive_sum<kThreads>(own, total);
  if (threadIdx.x == 0 && above >= k) cut.enter<A>(kBins, above, k);
  if (threadIdx.x == 0 && above + total < k) cut.fall_short<A>(above + total);
  for (int i = 0; i < kOwn && seen < k; ++i) {
    seen += bins[top - i];
    if (seen >= k) cut.enter<A>(top - i, seen, k);
  }
  __syncthreads();
}

}  // namespace ddp_compress::cuda
