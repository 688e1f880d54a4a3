#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <type_traits>

#include "../kernels.h"
#include "scratch.h"
#include "write.h"

namespace ddp_compress {
namespace {

// Elements: so much fp32 stays in the L2 cache for all ranks, and near the L1 cache while it is
// made.
constexpr int64_t kTile = 16384, kFresh = 8192;

// The entries of all ranks, tile after tile of the message.
template <typename A>
class Lists {
 public:
  Lists(const std::vector<Entries<A>>& ranks, int64_t start, A scale)
      : ranks_(ranks), begins_(ranks.size()), scale_(scale) {
    for (const Entries<A>& r : ranks)
      ends_.push_back(std::lower_bound(r.indices, r.indices + r.count, start) - r.indices);
  }

  // Adds those within [begin, end), rank after rank.
  void add(A* tile, int64_t begin, int64_t end) {
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const Entries<A>& entries = ranks_[r];
      int64_t i = begins_[r] = ends_[r];
      for (; i < entries.count && entries.indices[i] < end; ++i)
        tile[entries.indices[i] - begin] += entries.values[i] * scale_;
      ends_[r] = i;
    }
  }

  // Makes a tile zero again after `add`, the few that were added alone.
  void clear(A* tile, int64_t begin) const {
    for (size_t r = 0; r < ranks_.size(); ++r)
      for (int64_t i = begins_[r]; i < ends_[r]; ++i) tile[ranks_[r].indices[i] - begin] = A(0);
  }

 private:
  const std::vector<Entries<A>>& ranks_;
  std::vector<int64_t> begins_, ends_;  // of the last tile
  A scale_;
};

}  // namespace

// out += scale * (the sum over ranks of their sparse entries), out being positions
// [start, start + numel) of the message; `afresh`, as if out were zero before. Half types are
// summed in fp32 and rounded once.
template <typename G, typename A>
void scatter_add(G* out, int64_t start, int64_t numel, const std::vector<Entries<A>>& ranks,
                 A scale, bool afresh) {
  Lists<A> lists(ranks, start, scale);
  if constexpr (std::is_same_v<G, A>) {
    if (!afresh) {
      for (int64_t begin = 0; begin < numel; begin += kTile)
        lists.add(out + begin, start + begin, start + std::min(begin + kTile, numel));
      return;
    }
  }
  const auto put = writer<G, A>(numel);
  const Scratch<A> made(kFresh);
  std::fill_n(made.get(), kFresh, A(0));
  for (int64_t begin = 0; begin < numel; begin += kFresh) {
    const int64_t end = std::min(begin + kFresh, numel);
    if (!afresh) std::copy(out + begin, out + end, made.get());
    lists.add(made.get(), start + begin, start + end);
    put(made.get(), out + begin, end - begin);
    if (afresh) lists.clear(made.get(), start + begin);
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
