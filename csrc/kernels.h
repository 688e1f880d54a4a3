// The raw-pointer kernels behind the ops: one declaration each, no tensors.
// ops.cpp checks shapes and dtypes, then calls these; a CUDA twin keeps the same names.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ddp_compress {

constexpr int32_t kUnused = INT32_MAX;  // in slots that hold no position: above every one

// One flat piece of the message: a gradient with the memory that belongs to it.
template <typename G, typename A>
struct Chunk {
  const G* grad;
  const A* residual;
  const A* momentum;  // null where the memory keeps none
  int64_t numel;
  // Where the accumulated gradient and the next momentum are left; null where nobody wants them.
  A* sums;
  A* next_momentum;
};

// What top-k takes.
template <typename A>
struct Taken {
  int32_t* indices;  // room for sum(ks), ascending, in message coordinates
  A* values;
  bool* finite;
  int64_t* counts;  // of each group
  float* means;     // of each group, where a side is looked for; else null
};

// topk.cpp: salts may be null. Returns how many are taken. Where something is not finite, it is
// none, and sums have no meaning.
template <typename G, typename A>
int64_t topk(const std::vector<Chunk<G, A>>& chunks, A mu, const int64_t* bounds,
             const int64_t* groups, int64_t params, const int64_t* ks, int64_t group_count,
             const int64_t* salts, bool heavier, const Taken<A>& taken);

// segment_means.cpp
template <typename A>
using MeanOf = double (*)(const A* values, int64_t count);
template <typename A>
MeanOf<A> fastest_exact_mean();
template <typename A>
void segment_means(const A* values, const int64_t* counts, int64_t segments, float* means);

// accumulate.cpp
template <typename G, typename A>
void accumulate(const A* residual, const G* grad, const A* momentum, A mu, A* next_residual,
                A* next_momentum, int64_t numel);

// scatter_add.cpp
template <typename A>
struct Entries {
  const int32_t* indices;
  const A* values;
  int64_t count;
};
template <typename G, typename A>
void scatter_add(G* out, int64_t start, int64_t numel, const std::vector<Entries<A>>& ranks,
                 A scale, bool afresh);

// elias_fano.cpp
void elias_fano_encode(const int32_t* indices, int64_t count, int64_t numel, int64_t k,
                       uint8_t* out);
// Returns the number of indices, or a negative DecodeError.
int64_t elias_fano_decode(const uint8_t* data, int64_t size, int64_t numel, int64_t k,
                          int32_t* indices);

// entries.cpp: a rank's list, k slots of it; values are of type V, or a mean for each group.
// words: a status, and how many positions lie before the end of each group.
struct Groups {
  const int32_t* ends;
  int64_t count;
};
template <typename V>
void entries_decode(const uint8_t* data, int64_t size, Groups groups, int64_t numel, int64_t k,
                    bool means, int32_t* indices, float* values, int64_t* words);

// golomb.cpp
std::vector<uint8_t> golomb_encode(const int32_t* indices, int64_t count, const int64_t* bounds,
                                   int64_t params);
// Room for `limit` indices, or one for every bit if these are fewer; how many were found. Returns
// the bytes read, or a negative DecodeError.
int64_t golomb_decode(const uint8_t* data, int64_t size, const int64_t* bounds, int64_t params,
                      int64_t limit, int32_t* indices, int64_t* found);

// ballot.cpp
// The positions that any of the ballots holds, ascending, and how many hold each. Returns how many
// positions there are; room for one more than all ballots' entries.
int64_t tally(std::vector<std::span<const int32_t>> ballots, int32_t* positions, int32_t* votes);
void vote_keys(const int32_t* positions, const int32_t* votes, int64_t count, const int64_t* bounds,
               const int64_t* salts, int64_t params, int64_t voters, bool random, int64_t* keys);
// Ascending indices of the min(k, count) largest; of equals the first.
void largest(const int64_t* keys, int64_t count, int64_t k, int64_t* indices);

// whole_kernels.cpp: convolutions' kernels of m elements that lie `stride` apart; of other
// parameters m is 1. Chunks hold whole parameters.
struct KernelTables {
  const int64_t *bounds, *numels, *strides;
  int64_t params;
};
template <typename A>
struct KernelChunk {
  const A* values;
  int64_t numel;
};
template <typename A>
struct KernelValues {
  std::vector<KernelChunk<A>> chunks;
  KernelTables tables;
  const int64_t *groups, *ks;
  int64_t group_count;
};
// Of each kernel the elements, one kernel after another.
template <typename A>
std::vector<A> largest_kernels(const KernelValues<A>& given, int64_t m, int64_t count);
// `ways` has 2 * patterns + 1 prices for every parameter, `singles` one.
struct KernelPatterns {
  int64_t m;
  const double* data;  // [patterns, m]
};
struct KernelPrices {
  std::vector<KernelPatterns> sizes;
  int64_t patterns;
  const double *ways, *singles;
};
template <typename A>
struct RankedKernels {
  std::vector<int32_t> kernels, ways;
  std::vector<A> values;
  std::vector<int32_t> singles;
};
template <typename A>
RankedKernels<A> rank_kernels(const KernelValues<A>& given, const KernelPrices& prices);

// kernel_lists.cpp
template <typename A>
struct KernelList {
  const int32_t* kernels;
  const A* values;
  int64_t count;
};
template <typename A>
struct SplitKernels {
  std::vector<int32_t> kernels;
  std::vector<A> of_kernels;
  std::vector<int32_t> singles;
  std::vector<A> of_singles;
};
template <typename A>
SplitKernels<A> split_kernels(const Entries<A>& entries, const KernelTables& tables);
// indices and values have room for all.
template <typename A>
void join_kernels(const std::vector<KernelList<A>>& lists, const Entries<A>& singles,
                  const KernelTables& tables, int32_t* indices, A* values);

// rans.cpp
std::vector<uint8_t> rans_encode(const uint8_t* symbols, int64_t count, int alphabet);
// Several messages of `count` symbols each. status: the bytes read, or a negative DecodeError, and
// then the message's symbols have no meaning.
void rans_decode(const std::vector<std::span<const uint8_t>>& messages, int64_t count, int alphabet,
                 uint8_t* symbols, int64_t* status);

// cells.cpp: values come group after group, `counts` of them; a group has `width` cells.
constexpr int kMostCells = 65;  // two signs of 32 levels, and zero
// `edge_count` edges of every group, which is less than 32.
template <typename A>
void cell_numbers(const A* values, const int64_t* counts, int64_t groups, const double* edges,
                  int64_t edge_count, uint8_t* cells);
template <typename A>
void cell_means(const A* values, const uint8_t* cells, const int64_t* counts, int64_t groups,
                int width, float* means);
void cell_values(const float* table, const uint8_t* cells, const int64_t* counts, int64_t groups,
                 int width, float* values);

// signs.cpp
template <typename A>
void sign_encode(const A* values, const int64_t* bounds, int64_t segments, int64_t block,
                 uint8_t* bits, float* scales);
// out += scale * (the sum over ranks of what they stand for); `afresh`, as if out were zero before.
struct SignList {
  const uint8_t* bits;
  const float* scales;
};
template <typename G, typename A>
void sign_add(G* out, const std::vector<SignList>& ranks, const int64_t* bounds, int64_t segments,
              int64_t block, A scale, bool afresh);
void sign_decode(const uint8_t* bits, const float* scales, const int64_t* bounds, int64_t segments,
                 int64_t block, float* values);

// rotated.cpp
struct Rotation;
struct Cut;
struct Drawn;
template <typename G, typename A>
struct Sum;
void rotated_encode(const float* values, const Rotation& rotation, const Cut& cut,
                    const Drawn& drawn, uint8_t* data);
void rotated_decode(const uint8_t* data, const Rotation& rotation, const Cut& cut, float* values);
template <typename G, typename A>
void rotated_add(const std::vector<const uint8_t*>& ranks, const Rotation& rotation, const Cut& cut,
                 const Sum<G, A>& sum);

}  // namespace ddp_compress
