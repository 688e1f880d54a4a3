#include <algorithm>
#include <cstdint>
#include <vector>

#include "../kernels.h"

namespace ddp_compress {
namespace {

// Kernels whose elements lie between each other's: `stride` of them, m elements each.
struct Block {
  int64_t begin, m, stride;
  int64_t first;  // its first kernel's number

  int64_t end() const { return begin + m * stride; }
};

// Looks at the entries [from, to) of a block; `seen` and `slot` have room for its kernels.
template <typename A>
void split(const Block& block, const Entries<A>& entries, int64_t from, int64_t to,
           std::vector<int32_t>& seen, std::vector<int64_t>& slot, SplitKernels<A>& out) {
  const auto each = [&](auto f) {  // without a division
    for (int64_t i = from, row = block.begin, w = 0; i < to; ++i) {
      for (; entries.indices[i] >= row + block.stride; row += block.stride) ++w;
      f(i, static_cast<size_t>(entries.indices[i] - row), w);
    }
  };
  std::fill(seen.begin(), seen.end(), 0);
  each([&](int64_t, size_t channel, int64_t) { ++seen[channel]; });
  for (size_t channel = 0; channel < seen.size(); ++channel) {
    slot[channel] = -1;
    if (seen[channel] < block.m) continue;
    slot[channel] = std::ssize(out.of_kernels);
    out.kernels.push_back(static_cast<int32_t>(block.first + static_cast<int64_t>(channel)));
    out.of_kernels.resize(out.of_kernels.size() + static_cast<size_t>(block.m));
  }
  each([&](int64_t i, size_t channel, int64_t w) {
    if (slot[channel] >= 0) {
      out.of_kernels[static_cast<size_t>(slot[channel] + w)] = entries.values[i];
    } else {
      out.singles.push_back(entries.indices[i]);
      out.of_singles.push_back(entries.values[i]);
    }
  });
}

}  // namespace

template <typename A>
SplitKernels<A> split_kernels(const Entries<A>& entries, const KernelTables& tables) {
  SplitKernels<A> out;
  std::vector<int32_t> seen;
  std::vector<int64_t> slot;
  int64_t number = 0, i = 0;
  for (int64_t p = 0; p < tables.params; ++p) {
    const int64_t start = tables.bounds[p], end = tables.bounds[p + 1];
    const int64_t m = tables.numels[p], stride = tables.strides[p], size = m * stride;
    if (start < end) {
      seen.resize(static_cast<size_t>(stride));
      slot.resize(static_cast<size_t>(stride));
    }
    while (i < entries.count && entries.indices[i] < end) {
      int64_t to = i + 1;
      if (m == 1) {
        out.singles.push_back(entries.indices[i]);
        out.of_singles.push_back(entries.values[i]);
      } else {
        const int64_t before = (entries.indices[i] - start) / size;
        const Block block{start + before * size, m, stride, number + before * stride};
        while (to < entries.count && entries.indices[to] < block.end()) ++to;
        split(block, entries, i, to, seen, slot, out);
      }
      i = to;
    }
    if (m > 1) number += (end - start) / m;
  }
  return out;
}

template <typename A>
void join_kernels(const std::vector<KernelList<A>>& lists, const Entries<A>& singles,
                  const KernelTables& tables, int32_t* indices, A* values) {
  struct Row {
    const A* values;
    int32_t channel;
  };
  std::vector<KernelList<A>> rest = lists;
  std::vector<Row> rows;
  int64_t number = 0, single = 0;
  const auto put = [&](int32_t index, A value) {
    *indices++ = index;
    *values++ = value;
  };
  const auto put_singles_before = [&](int64_t end) {
    for (; single < singles.count && singles.indices[single] < end; ++single)
      put(singles.indices[single], singles.values[single]);
  };
  for (int64_t p = 0; p < tables.params; ++p) {
    const int64_t start = tables.bounds[p], end = tables.bounds[p + 1];
    const int64_t m = tables.numels[p], stride = tables.strides[p];
    const int64_t count = m > 1 ? (end - start) / m : 0;
    for (;;) {
      int64_t next = number + count;
      for (const auto& list : rest)
        if (list.count) next = std::min<int64_t>(next, list.kernels[0]);
      if (next == number + count) break;
      // All of the kernel's block.
      const int64_t first = next - (next - number) % stride;
      rows.clear();
      for (; next < first + stride;) {
        int64_t after = first + stride;
        for (auto& list : rest) {
          if (list.count && list.kernels[0] == next) {
            rows.push_back({list.values, static_cast<int32_t>(next - first)});
            ++list.kernels;
            list.values += m;
            --list.count;
          }
          if (list.count) after = std::min<int64_t>(after, list.kernels[0]);
        }
        next = after;
      }
      const int64_t begin = start + (first - number) * m;
      for (int64_t w = 0; w < m; ++w)
        for (const Row& row : rows) {
          const int64_t at = begin + w * stride + row.channel;
          put_singles_before(at);
          put(static_cast<int32_t>(at), row.values[w]);
        }
    }
    put_singles_before(end);
    number += count;
  }
}

template decltype(split_kernels<float>) split_kernels<float>;
template decltype(split_kernels<double>) split_kernels<double>;
template decltype(join_kernels<float>) join_kernels<float>;
template decltype(join_kernels<double>) join_kernels<double>;

}  // namespace ddp_compress
