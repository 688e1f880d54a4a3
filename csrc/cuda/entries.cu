#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>

#include "../elias_fano_layout.h"
#include "../wire_format.h"
#include "../wire_values.h"
#include "search.cuh"
#include "several.cuh"

namespace ddp_compress::cuda {
namespace {

constexpr int kThreads = 256;

constexpr float kLargest = std::numeric_limits<float>::max();
__device__ bool is_finite(float value) { return fabs(value) <= kLargest; }

// A thread a slot. It sees where groups end between its position and the next, and what is wrong.
template <typename V>
__global__ void __launch_bounds__(kThreads)
    read_values(Several<Bytes> ranks, int64_t skipped, Groups groups, int64_t k, bool means,
                const int32_t* indices, float* values, int64_t* words) {
  const int64_t blocks = gridDim.x / ranks.count, rank = blockIdx.x / blocks;
  const int64_t i = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (i > 0 && i >= k) return;
  indices += rank * k;
  words += rank * (1 + groups.count);
  const auto position = [&](int64_t slot) { return slot < k ? indices[slot] : kUnused; };
  const auto groups_before = [&](int32_t place) {
    return first_from(place, int64_t{0}, groups.count,
                      [&](int64_t g) { return groups.ends[g] - 1; });
  };
  const int32_t own = position(i), next = position(i + 1);
  const int64_t group = groups_before(own), end = groups_before(next);
  if (i == 0)
    for (int64_t g = 0; g < group; ++g) words[1 + g] = 0;
  for (int64_t g = group; g < end; ++g) words[1 + g] = i + 1;

  const WireValues<V> given{ranks[rank].data + skipped, ranks[rank].size - skipped};
  const bool used = own != kUnused, inside = group < groups.count;
  const float value = used && (inside || !means) ? given[means ? group : i] : 0.0f;
  if (i < k) values[rank * k + i] = value;
  bool good = is_finite(value) && (inside || !used);
  if (means && i < groups.count) good = good && is_finite(given[i]);
  if (next == kUnused && (used || i == 0)) {  // the last position: so many there are
    const int64_t wanted = means ? groups.count : i + (used ? 1 : 0);
    good = good && given.size == wanted * static_cast<int64_t>(sizeof(V));
  }
  if (!good && words[0] >= 0) words[0] = kBadValues;  // others write the same
}

}  // namespace

template <typename V>
void entries_decode(const Device& device, const std::vector<Bytes>& ranks, Groups groups,
                    int64_t numel, int64_t k, bool means, int32_t* indices, float* values,
                    int64_t* words) {
  elias_fano_decode(device, ranks, numel, k, indices, words, 1 + groups.count);
  const int64_t blocks = std::max<int64_t>(ceil_div(k, kThreads), 1);
  launch(device, static_cast<int64_t>(ranks.size()) * blocks, kThreads, read_values<V>,
         several(device, ranks), elias_fano_size(numel, k), groups, k, means, indices, values,
         words);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
#define INSTANTIATE(V)                                                                       \
  template void entries_decode<V>(const Device&, const std::vector<Bytes>&, Groups, int64_t, \
                                  int64_t, bool, int32_t*, float*, int64_t*);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace ddp_compress::cuda
