// The Walsh-Hadamard transform's one step, and how large a block may be.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ddp_compress {

constexpr int64_t kLargestBlock = 8192;  // 32 kB: it stays in a cache, or in shared memory

// The transform of R numbers, or of as many vectors of numbers. Every step adds or subtracts two
// numbers, in an order that is fixed, whatever R a larger transform is made of: so all machines
// round alike.
template <int R, typename T>
DDP_COMPRESS_HD inline void butterflies(T (&x)[R]) {
  for (int apart = 1; apart < R; apart *= 2) {
    for (int i = 0; i < R; ++i) {
      if (i & apart) continue;
      const T a = x[i], b = x[i + apart];
      x[i] = a + b;
      x[i + apart] = a - b;
    }
  }
}

}  // namespace ddp_compress
