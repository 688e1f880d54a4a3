#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <type_traits>

#include "../kernels.h"
#include "write.h"

namespace ddp_compress {
namespace {

constexpr int64_t kTile = 16384;  // elements: so much fp32 stays in the L2 cache for all ranks

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
// [start, start + numel) of the message; `afresh`, as if out were zero before. Half types are
// summed in fp32 and rounded once.
template <typename G, typename A>
void scatter_add(G* out, int64_t start, int64_t numel, const std::vector<Entries<A>>& ranks,
                 A scale, bool afresh) {
  std::vector<int64_t> cursors;
  for (const Entries<A>& r : ranks)
    cursors.push_back(std::lower_bound(r.indices, r.indices + r.count, start) - r.indices);
  const auto add = [&](A* tile, int64_t begin, int64_t end) {
    add_tile(tile, start + begin, start + end, ranks, cursors, scale);
  };
  const bool in_place = std::is_same_v<G, A> && !afresh;
  const int64_t size = in_place ? kTile : kMade;
  const auto put = writer<G, A>(numel);
  alignas(32) A made[kMade];
  for (int64_t begin = 0; begin < numel; begin += size) {
    const int64_t end = std::min(begin + size, numel);
    if constexpr (std::is_same_v<G, A>) {
      if (in_place) {
        add(out + begin, begin, end);
        continue;
      }
    }
    if (afresh)
      std::fill(made, made + (end - begin), A(0));
    else
      std::copy(out + begin, out + end, made);
    add(made, begin, end);
    put(made, out + begin, end - begin);
  }
  end_streams();
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
template void scatter_add(float*, int64_t, int64_t, const std::vector<Entries<float>>&, float,
                          bool);
template void scatter_add(BFloat16*, int64_t, int64_t, const std::vector<Entries<float>>&, float,
                          bool);
template void scatter_add(Half*, int64_t, int64_t, const std::vector<Entries<float>>&, float, bool);
template void scatter_add(double*, int64_t, int64_t, const std::vector<Entries<double>>&, double,
                          bool);

}  // namespace ddp_compress
