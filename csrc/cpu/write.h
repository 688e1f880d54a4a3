// How a tile of results goes to memory, whatever type it is kept in there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "simd.h"

namespace ddp_compress {

// Elements: a tile of results stays in the L1 cache while it is made, and so many are too many for
// the caches of whoever reads them next.
constexpr int64_t kMade = 4096, kStreamed = 1 << 18;

#ifdef DDP_COMPRESS_AVX2
// Past the caches, where nobody will read it soon: else memory would be read before it is written.
DDP_COMPRESS_TARGET_AVX2 inline void stream(const float* from, float* to, int64_t numel) {
  const int64_t unaligned = -static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) / 4) & 7;
  int64_t i = std::min(unaligned, numel);
  std::copy(from, from + i, to);
  for (; i + 8 <= numel; i += 8) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
  std::copy(from + i, from + numel, to + i);
}
#endif

template <typename G, typename A>
void write(const A* from, G* to, int64_t numel) {
  std::transform(from, from + numel, to, [](A value) { return static_cast<G>(value); });
}

// How tiles of a result of so many elements are written. What fits into the caches stays there, for
// an optimizer. `end_streams` comes behind the last.
template <typename G, typename A>
auto writer(int64_t numel) {
#ifdef DDP_COMPRESS_AVX2
  if constexpr (std::is_same_v<G, float>)
    if (numel >= kStreamed && use_avx2()) return stream;
#endif
  return write<G, A>;
}

}  // namespace ddp_compress
