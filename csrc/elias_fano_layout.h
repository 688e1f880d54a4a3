// Where the parts of an Elias-Fano message lie, in bits; wire_format.h says what they are.
#pragma once

#include <cstdint>

namespace ddp_compress {

struct EliasFanoLayout {
  int low;        // bits of a position that are stored as they are
  int64_t upper;  // where the upper bits start
  int64_t end;    // where the padding starts
};

inline EliasFanoLayout elias_fano_layout(int64_t numel, int64_t k) {
  EliasFanoLayout best{0, 0, 0};
  if (numel <= 0 || k <= 0) return best;
  for (int low = 0; low < 32; ++low) {
    const int64_t end = k * low + k + ((numel - 1) >> low);
    if (low == 0 || end < best.end) best = {low, k * low, end};
  }
  return best;
}

// Bytes.
inline int64_t elias_fano_size(int64_t numel, int64_t k) {
  return (elias_fano_layout(numel, k).end + 7) / 8;
}

}  // namespace ddp_compress
