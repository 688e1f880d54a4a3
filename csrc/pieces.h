// How the groups of a message lie in its chunks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace ddp_compress {

// Neighbouring elements of one chunk that belong to one group.
struct Piece {
  size_t chunk;
  int64_t begin, end;  // within the chunk
  int64_t base;        // the chunk's first position in the message
};

struct Group {
  std::vector<Piece> pieces;
  int64_t numel = 0;
};

// Whether sums are wanted, and a momentum is kept. An empty chunk's pointers are null anyway.
template <typename G, typename A>
bool wants_sums(const std::vector<Chunk<G, A>>& chunks) {
  return std::any_of(chunks.begin(), chunks.end(), [](const auto& chunk) { return chunk.sums; });
}
template <typename G, typename A>
bool has_momentum(const std::vector<Chunk<G, A>>& chunks) {
  return std::any_of(chunks.begin(), chunks.end(),
                     [](const auto& chunk) { return chunk.momentum; });
}

// Cuts the message into groups of pieces; neighbouring parameters of one group become one piece.
template <typename G, typename A>
std::vector<Group> cut(const std::vector<Chunk<G, A>>& chunks, const int64_t* bounds,
                       const int64_t* groups, int64_t params) {
  int64_t count = 0;
  for (int64_t p = 0; p < params; ++p) count = std::max(count, groups[p] + 1);
  std::vector<Group> result(static_cast<size_t>(count));
  size_t chunk = 0;
  int64_t base = 0;
  for (int64_t p = 0; p < params; ++p) {
    for (int64_t at = bounds[p]; at < bounds[p + 1];) {
      while (at >= base + chunks[chunk].numel) base += chunks[chunk++].numel;
      const int64_t end = std::min(bounds[p + 1], base + chunks[chunk].numel);
      if (groups[p] >= 0) {
        Group& group = result[static_cast<size_t>(groups[p])];
        group.numel += end - at;
        if (!group.pieces.empty() && group.pieces.back().chunk == chunk &&
            group.pieces.back().end == at - base) {
          group.pieces.back().end = end - base;
        } else {
          group.pieces.push_back({chunk, at - base, end - base, base});
        }
      }
      at = end;
    }
  }
  return result;
}

// The pieces that belong to no group.
template <typename G, typename A>
std::vector<Piece> left_out(const std::vector<Chunk<G, A>>& chunks, const int64_t* bounds,
                            const int64_t* groups, int64_t params) {
  std::vector<int64_t> others(groups, groups + params);
  for (int64_t& group : others) group = group < 0 ? 0 : -1;
  const std::vector<Group> all = cut(chunks, bounds, others.data(), params);
  return all.empty() ? std::vector<Piece>{} : all[0].pieces;
}

}  // namespace ddp_compress
