// The CUDA twins of ../kernels.h: raw pointers into device memory, and a stream to work on.
//
// Nothing here but golomb_encode waits for the device, so no size may depend on what is computed
// there: a list of positions has a slot for each that there may be. The unused slots come last;
// they hold kUnused and the value 0, and every kernel that reads a list passes over them. Pointers
// named `host_*` are of host memory.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "../kernels.h"

namespace ddp_compress::cuda {

// The stream that an op works on, and scratch memory that is its own until the op returns (what is
// launched by then is done with it before anyone else is).
struct Device {
  void* stream;  // a cudaStream_t: callers need no CUDA headers
  std::function<void*(int64_t bytes)> allocate;

  template <typename T>
  T* array(int64_t count) const {
    return static_cast<T*>(allocate(count * static_cast<int64_t>(sizeof(T))));
  }
};

// topk.cu: all of sum(ks) slots are written. Where something is not finite, all are unused and sums
// have no meaning. host_salts may be null.
template <typename G, typename A>
void topk(const Device& device, const std::vector<Chunk<G, A>>& chunks, A mu,
          const int64_t* host_bounds, const int64_t* host_groups, int64_t params,
          const int64_t* host_ks, int64_t groups, const int64_t* host_salts, bool heavier,
          const Taken<A>& taken);

// segment_means.cu: counts are clipped to the `count` values there are.
template <typename A>
void segment_means(const Device& device, const A* values, int64_t count, const int64_t* counts,
                   int64_t segments, float* means, bool magnitudes = false);

// accumulate.cu
template <typename G, typename A>
void accumulate(const Device& device, const A* residual, const G* grad, const A* momentum, A mu,
                A* next_residual, A* next_momentum, int64_t numel);

// scatter_add.cu
template <typename G, typename A>
void scatter_add(const Device& device, G* out, int64_t start, int64_t numel,
                 const std::vector<Entries<A>>& ranks, A scale, bool afresh);

// elias_fano.cu: `count` slots are read, k are written.
void elias_fano_encode(const Device& device, const int32_t* indices, int64_t count, int64_t numel,
                       int64_t k, uint8_t* out);
// Of each message, k slots, one message's behind another's, and a status, `stride` words from the
// next: the bytes read, or a DecodeError, and then all slots are unused.
struct Bytes {
  const uint8_t* data;
  int64_t size;
};
void elias_fano_decode(const Device& device, const std::vector<Bytes>& messages, int64_t numel,
                       int64_t k, int32_t* indices, int64_t* status, int64_t stride);

// entries.cu: of each rank k slots, and words as in ../kernels.h; group ends are on the device.
template <typename V>
void entries_decode(const Device& device, const std::vector<Bytes>& ranks, Groups groups,
                    int64_t numel, int64_t k, bool means, int32_t* indices, float* values,
                    int64_t* words);

// golomb.cu: waits for the device, because its size is not known before.
// `output` gives device memory for so many bytes.
void golomb_encode(const Device& device, const int32_t* indices, int64_t count,
                   const int64_t* host_bounds, int64_t params,
                   const std::function<uint8_t*(int64_t bytes)>& output);

// ballot.cu: positions and votes have a slot for each vote.
struct Ballot {
  const int32_t* positions;
  int64_t count;
};
void tally(const Device& device, const std::vector<Ballot>& ballots, int32_t* positions,
           int32_t* votes);
void vote_keys(const Device& device, const int32_t* positions, const int32_t* votes, int64_t count,
               const int64_t* host_bounds, const int64_t* host_salts, int64_t params,
               int64_t voters, bool random, int64_t* keys);
void largest(const Device& device, const int64_t* keys, int64_t count, int64_t k, int64_t* indices);

// signs.cu
template <typename A>
void sign_encode(const Device& device, const A* values, const int64_t* host_bounds,
                 int64_t segments, int64_t block, uint8_t* bits, float* scales);
template <typename G, typename A>
void sign_add(const Device& device, G* out, const std::vector<SignList>& ranks,
              const int64_t* host_bounds, int64_t segments, int64_t block, A scale, bool afresh);
void sign_decode(const Device& device, const uint8_t* bits, const float* scales,
                 const int64_t* host_bounds, int64_t segments, int64_t block, float* values);

// rotated.cu: tables are the host's.
void rotated_encode(const Device& device, const float* values, const Rotation& host_rotation,
                    const Cut& cut, const Drawn& host_drawn, uint8_t* data);
void rotated_decode(const Device& device, const uint8_t* data, const Rotation& host_rotation,
                    const Cut& cut, float* values);
template <typename G, typename A>
void rotated_add(const Device& device, const std::vector<const uint8_t*>& ranks,
                 const Rotation& host_rotation, const Cut& cut, const Sum<G, A>& sum);

}  // namespace ddp_compress::cuda
