// Exact top-k of the accumulated gradient in one pass over memory: see ../cpu/topk.cpp.
//
// One kernel does it all; its blocks wait for each other between these steps:
//   sample  A sample of each group guesses a cut a little below the k-th largest.
//   search  Elements are read, tile by tile; those above the cut are the group's candidates, and
//           are counted by bins as they are found. The last block to count for a group raises its
//           cut to the bin that holds the k-th. Again, now over the candidates alone, until the cut
//           is exact. If there was no room for all candidates, or the cut was guessed too high,
//           the group's elements are read once more.
//   weigh   The side of zero that is heavier is found, if only that is wanted.
//   gather  Candidates above the cut are counted, and then written, in order.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstring>
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

constexpr unsigned kFew = 8192;  // candidates that one block searches more quickly than all
constexpr int kBatch = 4;        // candidates that a thread loads together

// A piece of the message: what a group's tiles are cut from.
template <typename G, typename A, bool kMomentum>
struct Source {
  using Value = A;
  // Together on a processor: so many have registers for all loads of a tile.
  static constexpr int kBlocks = kMomentum || sizeof(A) > 4 ? 3 : 4;

  Accumulated<G, A, kMomentum> values;
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
  unsigned open;  // the last round of the search that left something to do
  unsigned not_finite;
};

// Tiles of one group that fall to one block, and the source of the first.
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
  unsigned* taken;     // by each block
  int32_t* positions;  // of candidates
  A* values;
  int32_t* indices;  // the answer
  A* top;
  int64_t slots;
  bool* finite;
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

  __device__ Selector(const Job<S>& job, Shared& shared)
      : job_(job),
        shared_(shared),
        thread_(static_cast<int>(threadIdx.x)),
        bins_((job.heavier ? 2 : 1) * (kBins + 1)) {}

  __device__ void run() {
    start();
    wait_for_grid();
    leave_sums();
    unsigned round = 0;
    do {
      ++round;
      for_groups([&](Search& search, Span span) {
        if (!search.done) look(search, span, round);
      });
      wait_for_grid();
    } while (job_.progress->open >= round && !job_.progress->not_finite);
    const bool finite = !job_.progress->not_finite;
    if (blockIdx.x == 0 && thread_ == 0) *job_.finite = finite;
    if (!finite) return leave_unused(0);

    if (job_.heavier) {
      for_groups([&](Search& search, Span span) { weigh(search, span); });
      wait_for_grid();
    }
    const unsigned own = gather<false>(0);
    if (thread_ == 0) job_.taken[blockIdx.x] = own;
    wait_for_grid();
    unsigned before = 0, all = 0;
    for (unsigned b = thread_; b < gridDim.x; b += kThreads) {
      all += job_.taken[b];
      if (b < blockIdx.x) before += job_.taken[b];
    }
    gather<true>(sum_of_block<kThreads>(before));
    leave_unused(sum_of_block<kThreads>(all));
  }

 private:
  // Calls f(search, span) for the groups of this block's tiles.
  template <typename F>
  __device__ void for_groups(F f) {
    const Share share(job_.tiles);
    Span span{first_source_, static_cast<int>(share.begin), 0};
    while (span.begin < share.end) {
      Search& search = job_.searches[job_.sources[span.source].group];
      span.end = search.end_tile < share.end ? search.end_tile : static_cast<int>(share.end);
      f(search, span);
      span = {search.end_source, span.end, 0};
    }
  }

  // ---------------------------------------------------------------------------------- sample

  __device__ void start() {
    const int64_t bins = int64_t{job_.search_count} * bins_;
    for (int64_t i = int64_t{blockIdx.x} * kThreads + thread_; i < bins; i += gridDim.x * kThreads)
      job_.bins[i] = 0;
    for (int s = static_cast<int>(blockIdx.x); s < job_.search_count;
         s += static_cast<int>(gridDim.x))
      if (job_.searches[s].sample_rank > 0) sample(job_.searches[s]);
    first_source_ = source_of(Share(job_.tiles).begin, 0, job_.source_count);
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
      narrow_cuts(search.sample_rank);
      clear_bins();
    }
    if (thread_ < 2 && shared_.cuts[thread_].magnitude > 1) {
      const uint64_t guess = shared_.cuts[thread_].magnitude;
      search.cuts[thread_].magnitude = guess < kInfinity<A> ? guess : kInfinity<A>;
      search.cuts[thread_].width = kNarrow<A>;
    }
    __syncthreads();
  }

  // Of what belongs to no group.
  __device__ void leave_sums() {
    const Share share(job_.left_out);
    const Span span{source_of(share.begin, job_.source_count, job_.all_sources),
                    static_cast<int>(share.begin), static_cast<int>(share.end)};
    for_tiles(span, job_.all_sources, [&](const S& source, int tile) { read(source, tile); });
  }

  // ---------------------------------------------------------------------------------- search

  // One round of a group's search: this block's part, and if it is the last, what follows.
  __device__ void look(Search& search, Span span, unsigned round) {
    take_up(search);
    if (search.stored)
      count_candidates(search, part(search, span.begin), part(search, span.end));
    else
      scan(search, span);
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

  // Notes where the candidates of each tile are, and counts them.
  __device__ void scan(Search& search, Span span) {
    for_tiles(span, job_.source_count,
              [&](const S& source, int tile) { scan_tile(search, source, tile); });
  }

  __device__ void scan_tile(Search& search, const S& source, int tile) {
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
  struct Rows {
    Pack<A, kVector> at[kRows];
  };
  __device__ Rows read(const S& source, int tile) const {
    const int64_t first = first_element(source, tile), start = source.start(tile);
    const auto accumulated = source.values;
    A* const sums = source.sums;
    Rows rows;
    if (source.aligned && start >= source.begin && start + kTile <= source.end) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) rows.at[row] = accumulated.load(first + row * kRow);
      if (sums)
#pragma unroll
        for (int row = 0; row < kRows; ++row)
          pack<kVector>(sums + first + row * kRow) = rows.at[row];
    } else {
#pragma unroll
      for (int row = 0; row < kRows; ++row)
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const int64_t i = first + row * kRow + j;
          const bool inside = i >= source.begin && i < source.end;
          rows.at[row].at[j] = inside ? accumulated[i] : A(0);
          if (inside && sums) sums[i] = rows.at[row].at[j];
        }
    }
    return rows;
  }

  // A bit for each of a thread's elements that are not below the cut, or not finite.
  __device__ unsigned find(const S& source, int tile) const {
    const Rows rows = read(source, tile);
    const A above = value_of(shared_.cuts[0].magnitude);
    const A below = -(job_.heavier ? value_of(shared_.cuts[1].magnitude) : above);
    unsigned hits = 0;
#pragma unroll
    for (int row = 0; row < kRows; ++row)
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const A value = rows.at[row].at[j];
        hits |= static_cast<unsigned>(!(value < above && value > below)) << (row * kVector + j);
      }
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
    for_candidates(search, begin, end, [&](A value, int32_t position) { count(value, position); });
  }

  template <typename F>
  __device__ void for_candidates(const Search& search, unsigned begin, unsigned end, F f) {
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
      for (int b = 0; b < kBatch; ++b) f(values[b], positions[b]);
    }
  }

  // The candidates before those that fall to the block of this tile.
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

  // Adds up what is taken of this block's part of the candidates, in any order.
  __device__ void weigh(Search& search, Span span) {
    take_up(search);
    const ExactMean<A> up = mean_of(search, 0), down = mean_of(search, 1);
    uint64_t ups = 0, downs = 0;
    for_candidates(search, part(search, span.begin), part(search, span.end),
                   [&](A value, int32_t position) {
                     if (bin(value, position) < 0) return;
                     if (side_of(value) == 0)
                       ups += up.term(value);
                     else
                       downs += down.term(value);
                   });
    ups = sum_of_block<kThreads>(ups);
    downs = sum_of_block<kThreads>(downs);
    if (thread_ == 0) {
      atomicAdd(&search.totals[0], static_cast<unsigned long long>(ups));
      atomicAdd(&search.totals[1], static_cast<unsigned long long>(downs));
    }
  }

  // The side that is wanted; the negative one where both are of equal weight.
  __device__ int side_of(const Search& search) const {
    if (!job_.heavier) return 0;
    const double up = mean_of(search, 0).mean(search.totals[0], search.cuts[0].taken);
    const double down = -mean_of(search, 1).mean(search.totals[1], search.cuts[1].taken);
    return up > down ? 0 : 1;
  }

  __device__ static ExactMean<A> mean_of(const Search& search, int side) {
    return ExactMean<A>(static_cast<Magnitude<A>>(search.largest[side]));
  }

  // ---------------------------------------------------------------------------------- gather

  // Goes through what is taken of this block's tiles, in order, and numbers it from `at` on.
  // Returns the next number.
  template <bool kWrite>
  __device__ unsigned gather(unsigned at) {
    for_groups([&](const Search& search, Span span) {
      take_up(search);
      const int side = side_of(search);
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
          const bool taken = side_of(value) == side && bin(value, position) >= 0;
          unsigned all;
          const unsigned number = at + exclusive_sum<kThreads>(unsigned{taken}, all);
          if (kWrite && taken) {
            job_.indices[number] = position;
            job_.top[number] = value;
          }
          at += all;
        }
      }
    });
    return at;
  }

  __device__ void leave_unused(unsigned begin) {
    const int64_t threads = int64_t{gridDim.x} * kThreads;
    for (int64_t i = begin + int64_t{blockIdx.x} * kThreads + thread_; i < job_.slots;
         i += threads) {
      job_.indices[i] = kUnused;
      job_.top[i] = 0;
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
  const int bins_;    // of a group
  int first_source_;  // of this block's tiles
};

template <typename S>
__global__ void __launch_bounds__(kThreads, S::kBlocks) select(const __grid_constant__ Job<S> job) {
  __shared__ Shared shared;
  Selector<S>(job, shared).run();
}

// -------------------------------------------------------------------------------------- the host

// Host arrays that go to the device in one copy.
class Table {
 public:
  // Returns where the array will start.
  template <typename T>
  size_t add(const T* data, size_t count) {
    const size_t start = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(start + count * sizeof(T));
    if (count > 0) std::memcpy(bytes_.data() + start, data, count * sizeof(T));
    return start;
  }
  char* send(const Device& device) const { return upload(device, bytes_); }

 private:
  std::vector<char> bytes_;
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

template <typename A>
Cut widest_cut() {
  return {1, 0, kWidest<A>, false, false, 0};  // zeros are never taken
}

template <typename G, typename A, bool kMomentum>
void run(const Device& device, const std::vector<Chunk<G, A>>& chunks, A mu, const int64_t* bounds,
         const int64_t* group_of, int64_t params, const int64_t* ks, const int64_t* salts,
         bool heavier, int64_t slots, int32_t* indices, A* values, bool* finite) {
  using S = Source<G, A, kMomentum>;
  std::vector<S> sources;
  std::vector<Search> searches;
  int tiles = 0;
  int64_t room = 0;
  const auto add = [&](const Piece& piece, int& first_tile) -> S& {
    const Chunk<G, A>& chunk = chunks[piece.chunk];
    S source{{chunk.grad, chunk.residual, chunk.momentum, mu}, chunk.sums};
    source.begin = piece.begin;
    source.end = piece.end;
    source.base = piece.base;
    source.first_tile = first_tile;
    source.aligned = source.values.aligned() && is_aligned(chunk.sums);
    first_tile += static_cast<int>(ceil_div(piece.end - source.origin(), kTile));
    return sources.emplace_back(source);
  };
  for (const Group& group : cut(chunks, bounds, group_of, params)) {
    Search search{};
    const int64_t k = std::min(ks[searches.size()], group.numel);
    search.k = static_cast<unsigned>(k);
    search.numel = group.numel;
    search.first_source = static_cast<int>(sources.size());
    search.first_tile = tiles;
    int64_t before = 0;
    for (const Piece& piece : group.pieces) {
      S& source = add(piece, tiles);
      source.before = before;
      source.group = static_cast<int>(searches.size());
      before += piece.end - piece.begin;
    }
    search.end_source = static_cast<int>(sources.size());
    search.end_tile = tiles;
    search.sample_rank = rank_in_sample(group.numel, k);
    const int64_t own = room_for(group.numel, k, search.sample_rank, heavier ? 2 : 1);
    search.first = static_cast<unsigned>(room);
    search.room = static_cast<unsigned>(own);
    room += own;
    search.cuts[0] = search.cuts[1] = widest_cut<A>();
    search.cuts[1].done = !heavier;
    searches.push_back(search);
  }

  const auto grouped = static_cast<int>(sources.size());
  int left_out_tiles = 0;
  if (chunks[0].sums)
    for (const Piece& piece : left_out(chunks, bounds, group_of, params))
      add(piece, left_out_tiles);

  Table table;
  const Progress none{};
  const size_t at_progress = table.add(&none, 1);
  const size_t at_sources = table.add(sources.data(), sources.size());
  const size_t at_searches = table.add(searches.data(), searches.size());
  const size_t at_bounds = table.add(bounds, salts ? params + 1 : 0);
  const size_t at_salts = table.add(salts, salts ? params : 0);
  char* const sent = table.send(device);

  const int64_t blocks = std::max(tiles + left_out_tiles, 1);
  Job<S> job;
  job.progress = reinterpret_cast<Progress*>(sent + at_progress);
  job.sources = reinterpret_cast<S*>(sent + at_sources);
  job.searches = reinterpret_cast<Search*>(sent + at_searches);
  job.source_count = grouped;
  job.all_sources = static_cast<int>(sources.size());
  job.search_count = static_cast<int>(searches.size());
  job.tiles = tiles;
  job.left_out = left_out_tiles;
  job.ties = {reinterpret_cast<int64_t*>(sent + at_bounds),
              salts ? reinterpret_cast<int64_t*>(sent + at_salts) : nullptr,
              static_cast<int>(params)};
  job.heavier = heavier;
  job.bins = device.array<unsigned>(int64_t{job.search_count} * (heavier ? 2 : 1) * (kBins + 1));
  job.notes = device.array<Note>(tiles);
  job.taken = device.array<unsigned>(blocks);
  job.positions = device.array<int32_t>(room);
  job.values = device.array<A>(room);
  job.indices = indices;
  job.top = values;
  job.slots = slots;
  job.finite = finite;
  launch_together(device, blocks, kThreads, select<S>, job);
}

}  // namespace

template <typename G, typename A>
void topk(const Device& device, const std::vector<Chunk<G, A>>& chunks, A mu,
          const int64_t* host_bounds, const int64_t* host_groups, int64_t params,
          const int64_t* host_ks, int64_t groups, const int64_t* host_salts, bool heavier,
          int32_t* indices, A* values, bool* finite) {
  const int64_t slots = std::accumulate(host_ks, host_ks + groups, int64_t{0});
  (chunks[0].momentum ? run<G, A, true> : run<G, A, false>)(device, chunks, mu, host_bounds,
                                                            host_groups, params, host_ks,
                                                            host_salts, heavier, slots, indices,
                                                            values, finite);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
#define INSTANTIATE(G, A)                                                                    \
  template void topk(const Device&, const std::vector<Chunk<G, A>>&, A, const int64_t*,      \
                     const int64_t*, int64_t, const int64_t*, int64_t, const int64_t*, bool, \
                     int32_t*, A*, bool*);
INSTANTIATE(float, float)
INSTANTIATE(BFloat16, float)
INSTANTIATE(Half, float)
INSTANTIATE(double, double)
#undef INSTANTIATE

}  // namespace ddp_compress::cuda
