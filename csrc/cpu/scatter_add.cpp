#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <type_traits>

#include "../kernels.h"

namespace ddp_compress {
namespace {

constexpr int64_t kTile = 16384;  // elements: a tile of fp32 stays in the L2 cache for all ranks

// Adds every rank's entries within [begin, end) of the message, rank after rank.
template <typename A>
void add_tile(A* tile, int64_t begin, int64_t end, const std::vector<Entries<A>>& ranks,
              std::vector<int64_t>& cursors, A scale) {
  for (size_t r = 0; r < ranks.size(); ++r) {
    const Entries<A>& entries = ranks[r];
    int64_t i = cursors[r];
    for (; i < entries.count && entries.indices[i] < end; ++i)
      tile[entries.indices[i] - begin] += entries.values[i] * scale;
    cursors[r] = i;
  }
}

}  // namespace

// out += scale * (the sum over ranks of their sparse entries), out being positions
// [start, start + numel) of the message. Half types are summed in fp32 and rounded once.
template <typename G, typename A>
void scatter_add(G* out, int64_t start, int64_t numel, const std::vector<Entries<A>>& ranks,
                 A scale) {
  std::vector<int64_t> cursors;
  for (const Entries<A>& r : ranks)
    cursors.push_back(std::lower_bound(r.indices, r.indices + r.count, start) - r.indices);
  A wide[std::is_same_v<G, A> ? 1 : kTile];
  for (int64_t begin = 0; begin < numel; begin += kTile) {
    const int64_t end = std::min(begin + kTile, numel);
    if constexpr (std::is_same_v<G, A>) {
      add_tile(out + begin, start + begin, start + end, ranks, cursors, scale);
    } else {
      std::copy(out + begin, out + end, wide);
      add_tile(wide, start + begin, start + end, ranks, cursors, scale);
      std::transform(wide, wide + (end - begin), out + begin,
                     [](A value) { return static_cast<G>(value); });
    }
  }
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
template void scatter_add(float*, int64_t, int64_t, const std::vector<Entries<float>>&, float);
template void scatter_add(BFloat16*, int64_t, int64_t, const std::vector<Entries<float>>&, float);
template void scatter_add(Half*, int64_t, int64_t, const std::vector<Entries<float>>&, float);
template void scatter_add(double*, int64_t, int64_t, const std::vector<Entries<double>>&, double);

}  // namespace ddp_compress
