// Exact top-k of the accumulated gradient in one pass over memory: see ../cpu/topk.cpp.
//
// One kernel does it all, in phases (see grid.cuh):
//   sample  A sample of each group guesses a cut a little below the k-th largest, and a looser one
//           to fall back on.
//   search  Elements are read, tile by tile; those above the cut are the group's candidates, and
//           are counted by bins as they are found. The last block to count for a group raises its
//           cut to the bin that holds the k-th. Again, now over the candidates alone, until the cut
//           is exact. If there was no room for all candidates, or the cut was guessed too high,
//           the group's elements are read once more.
//   weigh   Where only the heavier side of zero is wanted, each is added up.
//   gather  What is above the cut is counted, and then written, in order.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "../exact_mean.h"
#include "../pieces.h"
#include "accumulated.cuh"
#include "grid.cuh"
#include "kth.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 4;               // vectors of a thread in a tile
constexpr int kRow = kWarp * kVector;  // elements that a warp loads together
constexpr int kTile = kThreads * kVector * kRows;

constexpr int64_t kSmall = 2 * kTile;  // groups below are not worth a sample
constexpr int kSample = 4096;          // elements of a sample
constexpr int kRun = 8;                // neighbours sampled together: 32 bytes of fp32
constexpr int kRuns = kSample / kRun;
constexpr unsigned kLooser = 4;  // how many times the guess's rank the looser one's is

constexpr unsigned kFew = 8192;  // candidates that one block searches more quickly than all
constexpr int kBatch = 4;        // candidates that a thread loads together

// A piece of the message: what a group's tiles are cut from.
template <typename G, typename A>
struct Source {
  using Value = A;
  // Together on a processor: so many have registers for all loads of a tile.
  static constexpr int kBlocks = sizeof(A) > 4 ? 2 : 4;

  Accumulated<G, A> values;
  A* sums;             // gets the values; null where nobody wants them
  int64_t begin, end;  // within the chunk
  int64_t base;        // the chunk's first position in the message
  int64_t before;      // elements of the group's earlier pieces
  int group;
  int first_tile;
  bool aligned;

  // Where tiles start: so that vectors are aligned, maybe before the piece does.
  __host__ __device__ int64_t origin() const { return begin - begin % kVector; }
  __device__ int64_t start(int tile) const { return origin() + int64_t{tile - first_tile} * kTile; }
};

// The search for the k largest of one group: of all, or of each side of zero.
struct Search {
  unsigned k;
  int first_source, end_source;
  int first_tile, end_tile;
  int64_t numel;
  unsigned sample_rank;  // the sample's so manieth is the guess; 0: no sample is taken
  unsigned room, first;  // for so many candidates, from this one on

  // By side: first the positive entries (all of them where only one side is looked for).
  Cut cuts[2];
  unsigned long long largest[2];  // magnitude
  unsigned long long totals[2];   // of what is taken, as integers
  unsigned found;                 // candidates
  unsigned counted;               // tiles
  bool stored;                    // there was room for all candidates
  bool done;
};

// Where a tile's candidates are.
struct Note {
  unsigned first, count;
};

struct Progress {
  Turns::Counters turns;
  unsigned open;  // the last round of the search that left something to do
  unsigned not_finite;
};

constexpr unsigned kUnknown = ~0u;

// What is known of a share of the tiles.
struct Part {
  int first_source;   // of its first tile
  unsigned taken[2];  // by side, of the group that goes on in the next share; kUnknown at first
};

// Tiles of one group in a share, and the source of the first.
struct Span {
  int source, begin, end;
};

template <typename S>  // a Source
struct Job {
  using A = typename S::Value;
  Progress* progress;
  const S* sources;  // of groups, and then those that only leave their sums
  Search* searches;
  int source_count, all_sources, search_count;
  int tiles, left_out;  // tiles of groups, and of what only leaves its sums
  Ties ties;
  bool heavier;
  unsigned* bins;      // [searches][sides][kBins + 1]
  Note* notes;         // [tiles]
  Part* parts;         // [shares]
  int32_t* positions;  // of candidates
  A* values;
  Taken<A> answer;
  int64_t slots, groups;
};

// What the threads of a block share.
struct Shared {
  unsigned bins[2][kBins + 1];
  Cut cuts[2];
  unsigned long long largest[2];
  unsigned found;
  bool last;
  unsigned starts[kThreads], firsts[kThreads];
};

__device__ unsigned sum_of_bytes(unsigned bytes) {
  const unsigned pairs = (bytes & 0x00FF00FFu) + (bytes >> 8 & 0x00FF00FFu);
  return (pairs + (pairs >> 16)) & 0xFFFFu;
}

template <typename S>  // a Source
class Selector {
 public:
  using A = typename S::Value;
  using Tile = Rows<A, kRows>;  // of a thread

  __device__ Selector(const Job<S>& job, Shared& shared)
      : job_(job),
        shared_(shared),
        thread_(static_cast<int>(threadIdx.x)),
        bins_((job.heavier ? 2 : 1) * (kBins + 1)) {}

  __device__ void run() {
    Turns turns(&job_.progress->turns);
    turns.all([&](unsigned share) { start(share); });
    unsigned round = 0;
    do {
      ++round;
      turns.all([&](unsigned share) {
        for_groups(share, [&](Search& search, Span span) {
          if (!search.done) look(search, span, round);
        });
      });
    } while (job_.progress->open >= round && !job_.progress->not_finite);
    const bool finite = !job_.progress->not_finite;
    if (finite && job_.heavier) turns.all([&](unsigned share) { weigh(share); });
    turns.last([&](unsigned share) {
      if (share == 0) summarize(finite);
      leave_unused(share, finite ? gather(share) : 0);
    });
  }

 private:
  // Calls f(search, span) for the groups of a share's tiles.
  template <typename F>
  __device__ void for_groups(unsigned share, F f) {
    const Share tiles(job_.tiles, share);
    const auto end = static_cast<int>(tiles.end);
    Span span{job_.parts[share].first_source, static_cast<int>(tiles.begin), 0};
    while (span.begin < end) {
      Search& search = job_.searches[job_.sources[span.source].group];
      span.end = search.end_tile < end ? search.end_tile : end;
      f(search, span);
      span = {search.end_source, span.end, 0};
    }
  }

  // ---------------------------------------------------------------------------------- sample

  __device__ void start(unsigned share) {
    const Share bins(int64_t{job_.search_count} * bins_, share);
    for (int64_t i = bins.begin + thread_; i < bins.end; i += kThreads) job_.bins[i] = 0;
    const Share tiles(job_.tiles, share);
    if (thread_ == 0) {
      Part& part = job_.parts[share];
      part.first_source = source_of(tiles.begin, 0, job_.source_count);
      part.taken[0] = part.taken[1] = tiles.begin < tiles.end ? kUnknown : 0;
    }
    leave_sums(Share(job_.left_out, share));
    for (auto s = static_cast<int>(share); s < job_.search_count; s += static_cast<int>(gridDim.x))
      if (job_.searches[s].sample_rank > 0) sample(job_.searches[s]);
  }

  __device__ int source_of(int64_t tile, int first, int end) const {
    return last_up_to(tile, first, end, [&](int i) { return job_.sources[i].first_tile; });
  }

  __device__ void sample(Search& search) {
    constexpr int kOwn = kRuns / kThreads;
    A values[kOwn][kRun];
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      const int64_t at = (thread_ * kOwn + r) * (search.numel / kRuns);
      const S& source = job_.sources[last_up_to(at, search.first_source, search.end_source,
                                                [&](int i) { return job_.sources[i].before; })];
      const int64_t i = source.begin + at - source.before;
#pragma unroll
      for (int j = 0; j < kRun; ++j)
        values[r][j] = i + j < source.end ? source.values[i + j] : A(0);
    }
    take_up(search);
    for (int digit = 0; digit < 2; ++digit) {  // near enough
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
#pragma unroll
        for (int j = 0; j < kRun; ++j) count(values[r][j], 0);
      __syncthreads();
      if (digit == 0) guess_loosely(search);
      narrow_cuts(search.sample_rank);
      clear_bins();
    }
    if (thread_ < 2) search.cuts[thread_].start_at<A>(guess(thread_));
    __syncthreads();
  }

  // Something to fall back on, from the first bins, which then serve the guess itself.
  __device__ void guess_loosely(Search& search) {
    narrow_cuts(kLooser * search.sample_rank);
    if (thread_ < 2) {
      search.cuts[thread_].fallback = guess(thread_);
      shared_.cuts[thread_] = search.cuts[thread_];
    }
    __syncthreads();
  }

  __device__ uint64_t guess(int side) const {
    return smaller(shared_.cuts[side].magnitude, kInfinity<A>);
  }

  // Of what belongs to no group.
  __device__ void leave_sums(const Share& tiles) {
    const Span span{source_of(tiles.begin, job_.source_count, job_.all_sources),
                    static_cast<int>(tiles.begin), static_cast<int>(tiles.end)};
    for_tiles(span, job_.all_sources, [&](const S& source, int tile) { read(source, tile); });
  }

  // ---------------------------------------------------------------------------------- search

  // One round of a group's search: a share's part, and if it is the last, what follows.
  __device__ void look(Search& search, Span span, unsigned round) {
    take_up(search);
    if (search.stored)
      count_candidates(search, part(search, span.begin), part(search, span.end));
    else
      for_tiles(span, job_.source_count,
                [&](const S& source, int tile) { scan(search, source, tile); });
    __syncthreads();
    if (!is_last(search, span.end - span.begin)) return;

    const uint64_t floors[] = {shared_.cuts[0].magnitude, shared_.cuts[1].magnitude};
    narrow_cuts(search.k);
    const bool lowered =
        shared_.cuts[0].magnitude < floors[0] || shared_.cuts[1].magnitude < floors[1];
    const unsigned found = __ldcg(&search.found);
    const bool stored = found <= search.room && !lowered;
    while (stored && found <= kFew && !exact()) {
      clear_bins();
      count_candidates(search, 0, found);
      __syncthreads();
      narrow_cuts(search.k);
    }
    __syncthreads();  // all have read what is written now
    if (thread_ == 0) {
      for (int side = 0; side < 2; ++side) search.cuts[side] = shared_.cuts[side];
      search.stored = stored;
      search.done = stored && exact();
      search.counted = 0;
      if (!stored) search.found = 0;
      if (!search.done) atomicMax(&job_.progress->open, round);
    }
    __syncthreads();
  }

  // Calls f(source, tile) for tiles of sources from the given one on, of which there are so many.
  template <typename F>
  __device__ void for_tiles(Span span, int sources, F f) {
    for (int tile = span.begin, source = span.source; tile < span.end; ++tile) {
      if (source + 1 < sources && job_.sources[source + 1].first_tile <= tile) ++source;
      f(job_.sources[source], tile);
    }
  }

  // Notes where the candidates of a tile are, and counts them.
  __device__ void scan(Search& search, const S& source, int tile) {
    const int64_t first = first_element(source, tile);
    unsigned hits = find(source, tile);
    if (shared_.cuts[0].by_rank || shared_.cuts[1].by_rank) hits = outranking(source, first, hits);

    unsigned total;
    unsigned place = exclusive_sum<kThreads>(static_cast<unsigned>(__popc(hits)), total);
    if (thread_ == 0) {
      shared_.found = total > 0 ? atomicAdd(&search.found, total) : 0;
      job_.notes[tile] = {search.first + shared_.found, total};
    }
    if (total == 0) return;
    // Hits are in order row by row. The rows' counts fit into a byte each.
    unsigned rows = 0;
    for (int row = 0; row < kRows; ++row)
      rows |= static_cast<unsigned>(__popc(in_row(hits, row))) << 8 * row;
    unsigned lower = sum_up_to_lane(rows);
    const unsigned in_warp = __shfl_sync(kAllLanes, lower, kWarp - 1);
    lower -= rows;
    place = __shfl_sync(kAllLanes, place, 0);
    __syncthreads();
    const bool room = shared_.found + total <= search.room;
    place += search.first + shared_.found;
    for (unsigned left = hits; left != 0; left &= left - 1) {
      const int bit = __ffs(static_cast<int>(left)) - 1, row = bit / kVector;
      const A value = source.values[element(first, bit)];
      const auto position = static_cast<int32_t>(source.base + element(first, bit));
      if (room) {
        const unsigned at = place + sum_of_bytes(in_warp & ((1u << 8 * row) - 1)) +
                            (lower >> 8 * row & 0xFFu) +
                            static_cast<unsigned>(__popc(in_row(hits, row) & ((1u << bit) - 1)));
        job_.positions[at] = position;
        job_.values[at] = value;
      }
      const auto size = static_cast<unsigned long long>(magnitude(value));
      // Raised in the first round or never, because that sees all elements: so all blocks know.
      if (size >= kInfinity<A>) job_.progress->not_finite = 1;
      if (job_.heavier) atomicMax(&shared_.largest[side_of(value)], size);
      count(value, position);
    }
  }

  // The first of a thread's elements. A warp has kRows rows in a tile.
  __device__ int64_t first_element(const S& source, int tile) const {
    const int lane = thread_ % kWarp, warp = thread_ / kWarp;
    return source.start(tile) + warp * kRows * kRow + lane * kVector;
  }

  // A thread's elements; 0 where the source has none. Leaves them in `sums`.
  __device__ Tile read(const S& source, int tile) const {
    const int64_t first = first_element(source, tile), start = source.start(tile);
    const auto accumulated = source.values;
    A* const sums = source.sums;
    Tile rows;
    if (source.aligned && start >= source.begin && start + kTile <= source.end) {
      rows = accumulated.template load<kRows>(first, kRow);
      if (sums)
#pragma unroll
        for (int row = 0; row < kRows; ++row)
          store_once<kVector>(sums + first + row * kRow, rows.at[row]);
    } else {
      rows.for_each([&](A& value, int row, int j) {
        const int64_t i = first + row * kRow + j;
        const bool inside = i >= source.begin && i < source.end;
        value = inside ? accumulated[i] : A(0);
        if (inside && sums) sums[i] = value;
      });
    }
    return rows;
  }

  // A bit for each of a thread's elements that are not below the cut, or not finite.
  __device__ unsigned find(const S& source, int tile) const {
    Tile rows = read(source, tile);
    const A above = value_of(shared_.cuts[0].magnitude);
    const A below = -(job_.heavier ? value_of(shared_.cuts[1].magnitude) : above);
    unsigned hits = 0;
    rows.for_each([&](A value, int row, int j) {
      hits |= static_cast<unsigned>(!(value < above && value > below)) << (row * kVector + j);
    });
    return hits;
  }

  // Those of the hits that are not below the cut by rank either.
  __device__ unsigned outranking(const S& source, int64_t first, unsigned hits) const {
    unsigned kept = 0;
    for (unsigned left = hits; left != 0; left &= left - 1) {
      const int64_t i = element(first, __ffs(static_cast<int>(left)) - 1);
      const A value = source.values[i];
      if (bin(value, static_cast<int32_t>(source.base + i)) >= 0) kept |= left & -left;
    }
    return kept;
  }

  __device__ static unsigned in_row(unsigned hits, int row) {
    return hits & (((1u << kVector) - 1) << kVector * row);
  }
  __device__ static int64_t element(int64_t first, int bit) {
    return first + bit / kVector * kRow + bit % kVector;
  }

  // Counts the group's candidates from `begin` to `end`, in any order.
  __device__ void count_candidates(const Search& search, unsigned begin, unsigned end) {
    for (unsigned i = begin + thread_; i < end; i += kThreads * kBatch) {
      A values[kBatch];
      int32_t positions[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const unsigned at = search.first + i + b * kThreads;
        const bool inside = i + b * kThreads < end;
        values[b] = inside ? job_.values[at] : A(0);  // is never counted
        positions[b] = inside ? job_.positions[at] : 0;
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) count(values[b], positions[b]);
    }
  }

  // The candidates before those that fall to the share of this tile.
  __device__ static unsigned part(const Search& search, int tile) {
    return static_cast<unsigned>(uint64_t{search.found} * (tile - search.first_tile) /
                                 (search.end_tile - search.first_tile));
  }

  __device__ void count(A value, int32_t position) {
    const int side = side_of(value);
    if (shared_.cuts[side].done) return;
    const int b = bin(value, position);
    if (b >= 0) atomicAdd(&shared_.bins[side][b], 1u);
  }

  // Adds this block's bins, of so many tiles, to the group's. The last block gets all of them.
  __device__ bool is_last(Search& search, int tiles) {
    if (thread_ < 2 && shared_.largest[thread_] > 0)
      atomicMax(&search.largest[thread_], shared_.largest[thread_]);
    const int all = search.end_tile - search.first_tile;
    if (tiles == all) return true;
    unsigned* const own = shared_.bins[0];
    unsigned* const bins = job_.bins + (&search - job_.searches) * bins_;
    for (int i = thread_; i < bins_; i += kThreads)
      if (own[i] > 0) atomicAdd(&bins[i], own[i]);
    __threadfence();
    __syncthreads();
    if (thread_ == 0) {
      shared_.last = atomicAdd(&search.counted, static_cast<unsigned>(tiles)) + tiles ==
                     static_cast<unsigned>(all);
      __threadfence();
    }
    __syncthreads();
    if (!shared_.last) return false;
    for (int i = thread_; i < bins_; i += kThreads) {
      own[i] = __ldcg(&bins[i]);
      bins[i] = 0;  // for the next round
    }
    __syncthreads();
    return true;
  }

  __device__ void narrow_cuts(unsigned k) {
    for (int side = 0; side < 2; ++side)
      if (!shared_.cuts[side].done) narrow<kThreads, A>(shared_.cuts[side], shared_.bins[side], k);
  }

  __device__ bool exact() const { return shared_.cuts[0].done && shared_.cuts[1].done; }

  // ----------------------------------------------------------------------------------- weigh

  // Counts what is taken of a share's tiles, where a group goes on in the next share, and adds it
  // up where sides are weighed.
  __device__ void weigh(unsigned share) {
    for_groups(share, [&](Search& search, Span span) {
      if (!job_.heavier && span.end == search.end_tile) return;
      take_up(search);
      Weight up{scale_of(search, 0)}, down{scale_of(search, 1)};
      for_noted(span, [&](A value, int32_t position) {
        if (bin(value, position) < 0) return;
        if (side_of(value) == 0)
          up.add(value);
        else
          down.add(value);
      });
      report(up, share, search, 0);
      if (job_.heavier) report(down, share, search, 1);
    });
  }

  struct Weight {
    ExactMean<A> scale;
    uint64_t sum = 0;
    unsigned count = 0;

    __device__ void add(A value) {
      sum += scale.term(value);
      ++count;
    }
  };

  __device__ void report(const Weight& weight, unsigned share, Search& search, int side) {
    const uint64_t sum = sum_of_block<kThreads>(weight.sum);
    const unsigned count = sum_of_block<kThreads>(weight.count);
    if (thread_ > 0) return;
    atomicAdd(&search.totals[side], static_cast<unsigned long long>(sum));
    job_.parts[share].taken[side] = count;
  }

  // The side that is wanted; the negative one where both are of equal weight.
  __device__ int side_of(const Search& search) const {
    if (!job_.heavier) return 0;
    return mean_of(search, 0) > -mean_of(search, 1) ? 0 : 1;
  }

  __device__ static double mean_of(const Search& search, int side) {
    return scale_of(search, side).mean(search.totals[side], search.cuts[side].taken);
  }

  __device__ static ExactMean<A> scale_of(const Search& search, int side) {
    return ExactMean<A>(static_cast<Magnitude<A>>(search.largest[side]));
  }

  // ---------------------------------------------------------------------------------- gather

  // Writes what is taken of a share's tiles. Returns how much is taken of all.
  __device__ unsigned gather(unsigned share) {
    if (!job_.heavier) weigh(share);
    const Share tiles(job_.tiles, share);
    unsigned before = 0, all = 0;
    for (int s = thread_; s < job_.search_count; s += kThreads) {
      const Search& search = job_.searches[s];
      const unsigned taken = search.cuts[side_of(search)].taken;
      all += taken;
      if (search.end_tile <= tiles.begin) before += taken;
    }
    unsigned at = sum_of_block<kThreads>(before);
    for_groups(share, [&](const Search& search, Span span) {
      take_up(search);
      const int side = side_of(search);
      if (span.begin > search.first_tile) at += taken_before(share, search, side);
      for_noted(span, [&](A value, int32_t position) {
        const bool taken = side_of(value) == side && bin(value, position) >= 0;
        unsigned count;
        const unsigned number = at + exclusive_sum<kThreads>(unsigned{taken}, count);
        if (taken) {
          job_.answer.indices[number] = position;
          job_.answer.values[number] = value;
        }
        at += count;
      });
    });
    return sum_of_block<kThreads>(all);
  }

  // Says of every group how much of it is taken.
  __device__ void summarize(bool finite) {
    if (thread_ == 0) *job_.answer.finite = finite;
    for (int64_t s = thread_; s < job_.groups; s += kThreads) {
      const bool any = finite && s < job_.search_count;
      const int side = any ? side_of(job_.searches[s]) : 0;
      job_.answer.counts[s] = any ? job_.searches[s].cuts[side].taken : 0;
      if (job_.heavier)
        job_.answer.means[s] = any ? static_cast<float>(mean_of(job_.searches[s], side)) : 0.0f;
    }
  }

  // What is taken of a group in earlier shares.
  __device__ unsigned taken_before(unsigned share, const Search& search, int side) {
    unsigned taken = 0;
    for (unsigned s = thread_; s < share; s += kThreads)
      if (Share(job_.tiles, s).end > search.first_tile)
        taken += wait_for(job_.parts[s].taken[side], [](unsigned n) { return n != kUnknown; });
    return sum_of_block<kThreads>(taken);
  }

  // Calls f(value, position) for the candidates of tiles, in order and by all threads at once. Some
  // get a zero in the end, which is never taken.
  template <typename F>
  __device__ void for_noted(Span span, F f) {
    for (int tile = span.begin; tile < span.end; tile += kThreads) {
      // A thread reads a tile's note, and then those of the tiles' candidates that fall to it.
      const int own = tile + thread_;
      const Note note = own < span.end ? job_.notes[own] : Note{0, 0};
      unsigned count;
      shared_.starts[thread_] = exclusive_sum<kThreads>(note.count, count);
      shared_.firsts[thread_] = note.first;
      __syncthreads();
      for (unsigned step = 0; step < count; step += kThreads) {
        const unsigned i = step + thread_;
        A value = 0;
        int32_t position = 0;
        if (i < count) {
          const int t = last_up_to(i, 0, kThreads, [&](int t) { return shared_.starts[t]; });
          const unsigned candidate = shared_.firsts[t] + i - shared_.starts[t];
          value = job_.values[candidate];
          position = job_.positions[candidate];
        }
        f(value, position);
      }
    }
  }

  __device__ void leave_unused(unsigned share, unsigned begin) {
    const Share unused(job_.slots - begin, share);
    for (int64_t i = begin + unused.begin + thread_; i < begin + unused.end; i += kThreads) {
      job_.answer.indices[i] = kUnused;
      job_.answer.values[i] = 0;
    }
  }

  // ------------------------------------------------------------------------------------------

  // Makes a group's cuts the block's, and all counts zero. What was done for a group before ended
  // with a barrier.
  __device__ void take_up(const Search& search) {
    if (thread_ < 2) {
      shared_.cuts[thread_] = search.cuts[thread_];
      shared_.largest[thread_] = 0;
    }
    clear_bins();
  }

  __device__ void clear_bins() {
    unsigned* const bins = shared_.bins[0];
    for (int i = thread_; i < bins_; i += kThreads) bins[i] = 0;
    __syncthreads();
  }

  __device__ int side_of(A value) const { return job_.heavier && is_negative(value) ? 1 : 0; }

  // Its bin of its side; -1 below the cut.
  __device__ int bin(A value, int32_t position) const {
    return shared_.cuts[side_of(value)].bin(static_cast<uint64_t>(magnitude(value)), position,
                                            job_.ties);
  }

  __device__ static bool is_negative(A value) {
    return __builtin_bit_cast(Magnitude<A>, value) < 0;
  }
  __device__ static A value_of(uint64_t magnitude) {
    return __builtin_bit_cast(A, static_cast<Magnitude<A>>(magnitude));
  }

  const Job<S>& job_;
  Shared& shared_;
  const int thread_;
  const int bins_;  // of a group
};

template <typename S>
__global__ void __launch_bounds__(kThreads, S::kBlocks) select(const __grid_constant__ Job<S> job) {
  __shared__ Shared shared;
  Selector<S>(job, shared).run();
}

// -------------------------------------------------------------------------------------- the host

// Host arrays that go to the device in one copy.
struct Table {
  std::vector<char> bytes;

  // Returns where the array will start.
  template <typename T>
  size_t add(const std::vector<T>& array) {
    const size_t start = (bytes.size() + 15) / 16 * 16;
    const auto* const data = reinterpret_cast<const char*>(array.data());
    bytes.resize(start);
    bytes.insert(bytes.end(), data, data + array.size() * sizeof(T));
    return start;
  }
};

// Of a sample, generous by 3 standard deviations and 3 elements; 0 where no sample is worth while.
unsigned rank_in_sample(int64_t numel, int64_t k) {
  const double expected = kSample * static_cast<double>(k) / static_cast<double>(numel);
  const double rank = expected + 3 * std::sqrt(expected) + 3;
  return numel < kSmall || rank > kSample ? 0 : static_cast<unsigned>(rank);
}

// Candidates that there is room for: of what the sample lets through, 5 standard deviations more.
int64_t room_for(int64_t numel, int64_t k, unsigned rank, int sides) {
  if (rank == 0) return numel;
  const double share = (rank + 5 * std::sqrt(rank) + 8) / kSample;
  const auto room = static_cast<int64_t>(share * static_cast<double>(numel));
  return std::min(numel, sides * std::max(k, room));
}

// A search of `k` of a group of `numel`, as it starts; `room` counts all searches' candidates.
template <typename A>
Search search_for(int64_t k, int64_t numel, bool heavier, int64_t& room) {
  Search search{};
  search.k = static_cast<unsigned>(std::min(k, numel));
  search.numel = numel;
  search.sample_rank = rank_in_sample(numel, search.k);
  const int64_t own = room_for(numel, search.k, search.sample_rank, heavier ? 2 : 1);
  search.first = static_cast<unsigned>(room);
  search.room = static_cast<unsigned>(own);
  room += own;
  for (Cut& cut : search.cuts) cut = {1, 1, 0, kWidest<A>, false, false, 0};  // zeros are not taken
  search.cuts[1].done = !heavier;
  return search;
}

// The source of a piece, whose tiles follow those there are.
template <typename G, typename A>
Source<G, A> cut_out(const Chunk<G, A>& chunk, const Piece& piece, A mu, int& tiles) {
  Source<G, A> source{{chunk.grad, chunk.residual, chunk.momentum, mu, chunk.next_momentum},
                      chunk.sums};
  source.begin = piece.begin;
  source.end = piece.end;
  source.base = piece.base;
  source.first_tile = tiles;
  source.aligned = source.values.aligned() && is_aligned(chunk.sums);
  tiles += static_cast<int>(ceil_div(piece.end - source.origin(), kTile));
  return source;
}

}  // namespace

template <typename G, typename A>
void topk(const Device& device, const std::vector<Chunk<G, A>>& chunks, A mu,
          const int64_t* host_bounds, const int64_t* host_groups, int64_t params,
          const int64_t* host_ks, int64_t groups, const int64_t* host_salts, bool heavier,
          const Taken<A>& taken) {
  using S = Source<G, A>;
  Job<S> job{};
  std::vector<S> sources;
  std::vector<Search> searches;
  int64_t room = 0;
  for (const Group& group : cut(chunks, host_bounds, host_groups, params)) {
    Search search = search_for<A>(host_ks[job.search_count], group.numel, heavier, room);
    search.first_source = static_cast<int>(sources.size());
    search.first_tile = job.tiles;
    int64_t before = 0;
    for (const Piece& piece : group.pieces) {
      S& source = sources.emplace_back(cut_out(chunks[piece.chunk], piece, mu, job.tiles));
      source.before = before;
      source.group = job.search_count;
      before += piece.end - piece.begin;
    }
    search.end_source = static_cast<int>(sources.size());
    search.end_tile = job.tiles;
    searches.push_back(search);
    ++job.search_count;
  }
  job.source_count = static_cast<int>(sources.size());
  if (wants_sums(chunks))
    for (const Piece& piece : left_out(chunks, host_bounds, host_groups, params))
      sources.push_back(cut_out(chunks[piece.chunk], piece, mu, job.left_out));
  job.all_sources = static_cast<int>(sources.size());

  Table table;
  const size_t at_progress = table.add(std::vector<Progress>(1));
  const size_t at_sources = table.add(sources);
  const size_t at_searches = table.add(searches);
  const int64_t salted = host_salts ? params : 0;
  const size_t at_bounds = table.add(std::vector<int64_t>(host_bounds, host_bounds + salted));
  const size_t at_salts = table.add(std::vector<int64_t>(host_salts, host_salts + salted));
  char* const sent = upload(device, table.bytes);

  job.progress = reinterpret_cast<Progress*>(sent + at_progress);
  job.sources = reinterpret_cast<S*>(sent + at_sources);
  job.searches = reinterpret_cast<Search*>(sent + at_searches);
  job.ties = {reinterpret_cast<int64_t*>(sent + at_bounds),
              host_salts ? reinterpret_cast<int64_t*>(sent + at_salts) : nullptr,
              static_cast<int>(params)};
  job.heavier = heavier;
  const int64_t blocks = std::max(job.tiles + job.left_out, 1);
  job.bins = device.array<unsigned>(int64_t{job.search_count} * (heavier ? 2 : 1) * (kBins + 1));
  job.notes = device.array<Note>(job.tiles);
  job.parts = device.array<Part>(blocks);
  job.positions = device.array<int32_t>(room);
  job.values = device.array<A>(room);
  job.answer = taken;
  job.slots = std::accumulate(host_ks, host_ks + groups, int64_t{0});
  job.groups = groups;
  launch_in_turns(device, blocks, kThreads, select<S>, job);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
template decltype(topk<float, float>) topk<float, float>;
template decltype(topk<BFloat16, float>) topk<BFloat16, float>;
template decltype(topk<Half, float>) topk<Half, float>;
template decltype(topk<double, double>) topk<double, double>;

}  // namespace ddp_compress::cuda
