#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "../exact_mean.h"
#include "../kernels.h"
#include "scratch.h"

namespace ddp_compress {
namespace {

constexpr int64_t kTile = 256;
constexpr int kTurns = 4;

// The least number of a type that is not below an edge: what is below one is below the other.
template <typename A>
A rounded_up(double edge) {
  const A near = static_cast<A>(edge);
  return near < edge ? std::nextafter(near, std::numeric_limits<A>::infinity()) : near;
}

template <typename A>
void number_tile(const A* values, int64_t count, const std::array<A, kMostCells>& edges,
                 int64_t edge_count, uint8_t* cells) {
  std::array<A, kTile> magnitudes;
  std::array<Magnitude<A>, kTile> levels;
  for (int64_t i = 0; i < count; ++i) {
    magnitudes[i] = std::abs(values[i]);
    levels[i] = 1;
  }
  for (int64_t e = 0; e < edge_count; ++e)
    for (int64_t i = 0; i < count; ++i) levels[i] += !(magnitudes[i] < edges[e]);
  for (int64_t i = 0; i < count; ++i) {
    const Magnitude<A> nonzero = values[i] != 0;  // without a branch, so in vectors
    cells[i] = static_cast<uint8_t>((2 * levels[i] - (values[i] > 0)) & -nonzero);
  }
}

}  // namespace

template <typename A>
void cell_numbers(const A* values, const int64_t* counts, int64_t groups, const double* edges,
                  int64_t edge_count, uint8_t* cells) {
  for (int64_t g = 0; g < groups; ++g, edges += edge_count) {
    std::array<A, kMostCells> limits;
    for (int64_t e = 0; e < edge_count; ++e) limits[e] = rounded_up<A>(edges[e]);
    for (int64_t first = 0; first < counts[g]; first += kTile) {
      const int64_t here = std::min(kTile, counts[g] - first);
      number_tile(values, here, limits, edge_count, cells);
      values += here;
      cells += here;
    }
  }
}

template <typename A>
void cell_means(const A* values, const uint8_t* cells, const int64_t* counts, int64_t groups,
                int width, float* means) {
  const Scratch<A> sorted(groups ? *std::max_element(counts, counts + groups) : 0);
  for (int64_t g = 0; g < groups; ++g, means += width) {
    // Counted, then sorted, in turns: values of one cell would wait for each other.
    std::array<std::array<int64_t, kMostCells>, kTurns> places{};
    std::array<int64_t, kMostCells> sizes{};
    for (int64_t i = 0; i < counts[g]; ++i) ++places[i % kTurns][cells[i]];
    int64_t end = 0;
    for (int c = 0; c < width; ++c)
      for (auto& turn : places) {
        sizes[c] += turn[c];
        end += std::exchange(turn[c], end);
      }
    for (int64_t i = 0; i < counts[g]; ++i) sorted[places[i % kTurns][cells[i]]++] = values[i];
    segment_means(sorted.get(), sizes.data(), width, means);
    values += counts[g];
    cells += counts[g];
  }
}

void cell_values(const float* table, const uint8_t* cells, const int64_t* counts, int64_t groups,
                 int width, float* values) {
  for (int64_t g = 0; g < groups; ++g, table += width)
    for (int64_t i = 0; i < counts[g]; ++i) *values++ = table[*cells++];
}

#define INSTANTIATE(A)                                                                             \
  template void cell_numbers(const A*, const int64_t*, int64_t, const double*, int64_t, uint8_t*); \
  template void cell_means(const A*, const uint8_t*, const int64_t*, int64_t, int, float*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace ddp_compress
