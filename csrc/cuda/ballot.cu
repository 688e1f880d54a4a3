#include <algorithm>

#include "../tie_hash.h"
#include "grid.cuh"
#include "search.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// How many of some ascending numbers are below a value.
template <typename T>
__device__ int64_t count_below(const T* numbers, int64_t count, T value) {
  return first_from(value, int64_t{0}, count, [&](int64_t i) { return numbers[i]; });
}

template <typename T>
__device__ T block_sum(T value) {
  return sum_of_block<kThreads>(value);
}

template <typename T>
__device__ T block_min(T value) {
  return reduce<kThreads>(value, smaller<T>);
}

template <typename T>
__device__ T block_max(T value) {
  return reduce<kThreads>(value, larger<T>);
}

// ------------------------------------------------------------------------------------------ tally
//
// All positions are cut into sections, at even distances in the longest ballot. A block counts one
// section, window after window: of each ballot, a warp adds the votes to counters in shared memory,
// one for each position of the window. The next window starts at the first position that any ballot
// still holds. A section's positions go where they would be if no ballots agreed; a second kernel
// closes the gaps.
//
// Ballots that do not ascend give nonsense, but no entry is counted twice in a section and every
// window starts beyond the one before: it ends, within the memory.

constexpr int kWindow = kThreads * kWarp;  // positions: a row of kWarp for each thread
constexpr int64_t kSectionVotes = 64;      // at least
constexpr int64_t kMostSections = 768;     // an H100 or H200 runs all of them at once
constexpr int64_t kNone = INT64_MAX;       // beyond every position

// The entries of a ballot that are in a section and were not counted yet.
struct Part {
  int64_t next, end;
};

struct Section {
  int64_t begin, count;  // of its positions, before gaps are closed
};

__device__ int32_t section_start(const Ballot& longest, int64_t section) {
  if (section == 0) return INT32_MIN;
  if (section == gridDim.x) return kUnused;
  return longest.positions[longest.count * section / gridDim.x];
}

// Counts a ballot's votes in a window. Returns the first position that it holds after that.
__device__ int64_t count_ballot(const int32_t* positions, Part& part, int64_t window,
                                int32_t* counters) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t end = part.end;
  for (int64_t next = part.next;; next += kWarp) {
    const int64_t position = next + lane < end ? positions[next + lane] : kNone;
    const bool inside = position < window + kWindow;
    if (inside && position >= window) atomicAdd(&counters[position - window], 1);
    const unsigned outside = ~__ballot_sync(kAllLanes, inside);
    if (outside == 0) continue;
    const int first = __ffs(static_cast<int>(outside)) - 1;
    if (lane == 0) part.next = next + first;
    return __shfl_sync(kAllLanes, position, first);
  }
}

// Writes a window's positions that have votes, and clears the counters. Returns how many there are.
__device__ int write_window(int64_t window, int32_t* counters, int32_t* positions, int32_t* votes) {
  const int row = static_cast<int>(threadIdx.x) * kWarp;
  unsigned voted = 0;  // a bit for each position of the row
#pragma unroll 8
  for (int i = 0; i < kWarp; ++i) {
    const int bit = (static_cast<int>(threadIdx.x) + i) % kWarp;  // each lane reads another bank
    voted |= unsigned{counters[row + bit] != 0} << bit;
  }
  int count;
  int at = exclusive_sum<kThreads>(__popc(voted), count);
  for (; voted != 0; voted &= voted - 1, ++at) {
    const int offset = row + __ffs(static_cast<int>(voted)) - 1;
    positions[at] = static_cast<int32_t>(window + offset);
    votes[at] = counters[offset];
    counters[offset] = 0;
  }
  __syncthreads();
  return count;
}

__global__ void __launch_bounds__(kThreads, 6)  // for 6 there is room in an H100's shared memory
    count_votes(const Ballot* ballots, int64_t voters, int64_t longest, Part* parts,
                Section* sections, int32_t* positions, int32_t* votes) {
  __shared__ int32_t counters[kWindow];
  for (int i = static_cast<int>(threadIdx.x); i < kWindow; i += kThreads) counters[i] = 0;

  const int32_t start = section_start(ballots[longest], blockIdx.x);
  const int32_t end = section_start(ballots[longest], int64_t{blockIdx.x} + 1);
  parts += blockIdx.x * voters;
  for (int64_t i = threadIdx.x; i < 2 * voters;
       i += kThreads) {  // one search a thread: they are slow
    const Ballot ballot = ballots[i / 2];
    int64_t& edge = i % 2 ? parts[i / 2].end : parts[i / 2].next;
    edge = count_below(ballot.positions, ballot.count, i % 2 ? end : start);
  }
  __syncthreads();

  int64_t begin = 0, window = kNone;
  for (int64_t b = threadIdx.x; b < voters; b += kThreads) {
    const Part part = parts[b];
    begin += part.next;
    if (part.next < part.end) window = smaller<int64_t>(window, ballots[b].positions[part.next]);
  }
  begin = block_sum(begin);
  window = block_min(window);

  int64_t count = 0;
  while (window != kNone) {
    int64_t next = kNone;
    for (int64_t b = threadIdx.x / kWarp; b < voters; b += kWarps)
      next = smaller(next, count_ballot(ballots[b].positions, parts[b], window, counters));
    next = block_min(next);  // and all votes are counted
    const int64_t at = begin + count;
    count += write_window(window, counters, positions + at, votes + at);
    window = next;
  }
  if (threadIdx.x == 0) sections[blockIdx.x] = {begin, count};
}

__global__ void __launch_bounds__(kThreads)
    close_gaps(const Section* sections, const int32_t* __restrict__ found,
               const int32_t* __restrict__ counted, int64_t slots, int32_t* __restrict__ positions,
               int32_t* __restrict__ votes) {
  int64_t before = 0, used = 0;
  for (unsigned s = threadIdx.x; s < gridDim.x; s += kThreads) {
    used += sections[s].count;
    if (s < blockIdx.x) before += sections[s].count;
  }
  before = block_sum(before);
  used = smaller(block_sum(used), slots);  // more only where ballots do not ascend

  const Section section = sections[blockIdx.x];
  const int64_t count = smaller(section.count, slots - before);
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    positions[before + i] = found[section.begin + i];
    votes[before + i] = counted[section.begin + i];
  }
  const Share unused(slots - used);
  for (int64_t i = unused.begin + threadIdx.x; i < unused.end; i += kThreads) {
    positions[used + i] = kUnused;
    votes[used + i] = 0;
  }
}

// -------------------------------------------------------------------------------------- vote_keys

__global__ void __launch_bounds__(kThreads)
    key_of_each(const int32_t* positions, const int32_t* votes, int64_t count,
                const int64_t* bounds, const int64_t* salts, int64_t params, int64_t voters,
                bool random, int64_t* keys) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t position = positions[i];
  if (position < 0 || position >= bounds[params]) {  // an unused slot is not within the parameters
    keys[i] = -1;
    return;
  }
  const int64_t param = count_below(bounds, params, position + 1) - 1;
  const auto salt = static_cast<uint64_t>(salts[param]);
  const auto offset = static_cast<uint64_t>(position - bounds[param]);
  int64_t hash = tie_hash(salt, offset, 0);
  if (random) {
    const int64_t draws = smaller<int64_t>(votes[i], voters);
    for (int64_t draw = 1; draw < draws; ++draw)
      hash = larger<int64_t>(hash, tie_hash(salt, offset, static_cast<uint64_t>(draw)));
    keys[i] = voters * hash;
  } else {
    keys[i] = (int64_t{votes[i]} - 1) << 32 | hash;
  }
}

// ---------------------------------------------------------------------------------------- largest
//
// A radix select on the distances from the smallest key, kBits a pass, from the highest bit that
// any has. Blocks count keys by bin, in shares, and when all are counted, find the same bin: the
// one that the k-th largest is in. In the end there is a range of distances so that all above it
// are among the largest, and of those within it the first few.

constexpr int kBits = 11;
constexpr int kBins = 1 << kBits;
constexpr int kPasses = (64 + kBits - 1) / kBits;
constexpr int kEach = 8;  // keys of a thread, at a time
constexpr int kTile = kThreads * kEach;

using Word = unsigned long long;

// The order of keys without their sign.
__device__ Word word_of(int64_t key) {
  return static_cast<Word>(key) ^ Word { 1 } << 63;
}

struct Range {
  Word first, last;
  __device__ bool holds(Word distance) const { return distance >= first && distance <= last; }
};

// What blocks tell each other; zero at first.
struct Board {
  Turns::Counters turns;
  Word highest, lowest_inverted;
  Word bins[kPasses][kBins];
};

struct Found {
  int64_t above, within;
};

// Calls f(key) for every key of a share.
template <typename F>
__device__ void for_each(const int64_t* keys, const Share& share, F f) {
  for (int64_t tile = share.begin + threadIdx.x; tile < share.end; tile += kTile) {
    int64_t key[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (tile + i * kThreads < share.end) key[i] = keys[tile + i * kThreads];
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (tile + i * kThreads < share.end) f(key[i]);
  }
}

__device__ void find_extremes(const int64_t* keys, const Share& share, Board* board) {
  Word highest = 0, lowest_inverted = 0;
  for_each(keys, share, [&](int64_t key) {
    highest = larger(highest, word_of(key));
    lowest_inverted = larger(lowest_inverted, ~word_of(key));
  });
  highest = block_max(highest);
  lowest_inverted = block_max(lowest_inverted);
  if (threadIdx.x == 0) {
    atomicMax(&board->highest, highest);
    atomicMax(&board->lowest_inverted, lowest_inverted);
  }
}

// Adds a share's keys to the bins that the range is cut into. Bin 0 is left out: it gets what
// the others leave, and many keys may be the smallest, which all unused slots have.
__device__ void count_bins(const int64_t* keys, const Share& share, Word smallest,
                           const Range& range, int shift, Word* bins) {
  __shared__ unsigned counts[kBins];
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) counts[i] = 0;
  __syncthreads();
  for_each(keys, share, [&](int64_t key) {
    const Word distance = word_of(key) - smallest;
    const Word bin = (distance - range.first) >> shift;
    if (range.holds(distance) && bin > 0) atomicAdd(&counts[bin], 1u);
  });
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads)
    if (counts[i] > 0) atomicAdd(&bins[i], Word{counts[i]});
}

// The bin where, from the top, `wanted` keys are reached; how many of its own are among them, and
// whether all are.
struct Choice {
  Word bin;
  int64_t wanted;
  bool all;
};

__device__ Choice choose_bin(const Word* bins, int64_t count, int64_t wanted) {
  constexpr int kMine = kBins / kThreads;
  __shared__ Choice choice;
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kMine;
  int64_t sizes[kMine], sum = 0;
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    sizes[i] = top - i == 0 ? count : static_cast<int64_t>(bins[top - i]);
    sum += sizes[i];
  }
  int64_t total;
  int64_t above = exclusive_sum<kThreads>(sum, total);
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    if (above < wanted && wanted <= above + sizes[i])
      choice = {static_cast<Word>(top - i), wanted - above, wanted == above + sizes[i]};
    above += sizes[i];
  }
  __syncthreads();
  return choice;
}

// What was found in earlier shares.
__device__ Found found_before(unsigned share, const Found* found) {
  int64_t above = 0, within = 0;
  for (unsigned s = threadIdx.x; s < share; s += kThreads) {
    above += found[s].above;
    within += found[s].within;
  }
  above = block_sum(above);
  return {above, block_sum(within)};
}

// Writes the indices of a share's keys that are above the range, or among the first `wanted`
// within it. A thread takes neighbours, for their order.
__device__ void write_indices(const int64_t* keys, const Share& share, Word smallest,
                              const Range& range, int64_t wanted, Found before, int64_t* indices) {
  for (int64_t tile = share.begin; tile < share.end; tile += kTile) {
    const int64_t first = tile + static_cast<int64_t>(threadIdx.x) * kEach;
    unsigned above = 0, within = 0;  // a bit for each key
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (first + i >= share.end) continue;
      const Word distance = word_of(keys[first + i]) - smallest;
      above |= unsigned{distance > range.last} << i;
      within |= unsigned{range.holds(distance)} << i;
    }
    const auto mine = static_cast<unsigned>(__popc(above) << 16 | __popc(within));
    unsigned all;
    const unsigned earlier = exclusive_sum<kThreads>(mine, all);
    int64_t above_before = before.above + (earlier >> 16);
    int64_t within_before = before.within + (earlier & 0xFFFF);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const bool taken = within >> i & 1 && within_before < wanted;
      if (taken || above >> i & 1)
        indices[above_before + smaller(within_before, wanted)] = first + i;
      above_before += above >> i & 1;
      within_before += within >> i & 1;
    }
    before.above += all >> 16;
    before.within += all & 0xFFFF;
  }
}

__global__ void __launch_bounds__(kThreads, 4)
    find_largest(const int64_t* __restrict__ keys, int64_t count, int64_t k, Board* board,
                 Found* found, int64_t* indices) {
  Turns turns(&board->turns);
  turns.all([&](unsigned share) { find_extremes(keys, Share(count, share), board); });

  const Word smallest = ~board->lowest_inverted;
  Range range{0, board->highest - smallest};
  int64_t wanted = k;
  int shift = 64 - __clzll(static_cast<long long>(range.last));
  for (int pass = 0; shift > 0; ++pass) {
    shift = shift > kBits ? shift - kBits : 0;
    turns.all([&](unsigned share) {
      count_bins(keys, Share(count, share), smallest, range, shift, board->bins[pass]);
    });
    const Choice choice = choose_bin(board->bins[pass], count, wanted);
    range.first += choice.bin << shift;
    range.last = range.first + ((Word{1} << shift) - 1);
    wanted = choice.wanted;
    if (choice.all) break;
  }

  turns.all([&](unsigned share) {
    int64_t above = 0, within = 0;
    for_each(keys, Share(count, share), [&](int64_t key) {
      const Word distance = word_of(key) - smallest;
      above += distance > range.last;
      within += range.holds(distance);
    });
    above = block_sum(above);
    within = block_sum(within);
    if (threadIdx.x == 0) found[share] = {above, within};
  });
  turns.last([&](unsigned share) {
    write_indices(keys, Share(count, share), smallest, range, wanted, found_before(share, found),
                  indices);
  });
}

}  // namespace

void tally(const Device& device, const std::vector<Ballot>& ballots, int32_t* positions,
           int32_t* votes) {
  int64_t slots = 0;
  for (const Ballot& ballot : ballots) slots += ballot.count;
  const auto longest =
      std::max_element(ballots.begin(), ballots.end(),
                       [](const Ballot& a, const Ballot& b) { return a.count < b.count; });
  const auto voters = static_cast<int64_t>(ballots.size());
  const int64_t blocks = std::min(ceil_div(slots, kSectionVotes), kMostSections);
  auto* sections = device.array<Section>(blocks);
  auto* found = device.array<int32_t>(slots);
  auto* counted = device.array<int32_t>(slots);
  launch(device, blocks, kThreads, count_votes, upload(device, ballots), voters,
         longest - ballots.begin(), device.array<Part>(blocks * voters), sections, found, counted);
  launch(device, blocks, kThreads, close_gaps, sections, found, counted, slots, positions, votes);
}

void vote_keys(const Device& device, const int32_t* positions, const int32_t* votes, int64_t count,
               const int64_t* host_bounds, const int64_t* host_salts, int64_t params,
               int64_t voters, bool random, int64_t* keys) {
  std::vector<int64_t> tables(host_bounds, host_bounds + params + 1);
  tables.insert(tables.end(), host_salts, host_salts + params);
  const int64_t* bounds = upload(device, tables);
  launch(device, ceil_div(count, kThreads), kThreads, key_of_each, positions, votes, count, bounds,
         bounds + params + 1, params, voters, random, keys);
}

void largest(const Device& device, const int64_t* keys, int64_t count, int64_t k,
             int64_t* indices) {
  k = std::min(k, count);
  if (k == 0) return;
  const int64_t blocks = ceil_div(count, kTile);
  auto* board = device.array<Board>(1);
  fill_zero(device, board, 1);
  launch_in_turns(device, blocks, kThreads, find_largest, keys, count, k, board,
                  device.array<Found>(blocks), indices);
}

}  // namespace ddp_compress::cuda
