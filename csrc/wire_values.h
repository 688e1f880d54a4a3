// Values on the wire, which stand anywhere.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace ddp_compress {

// The i-th is 0 where the bytes end before it.
template <typename V>
struct WireValues {
  const uint8_t* data;
  int64_t size;

  DDP_COMPRESS_HD float operator[](int64_t i) const {
    constexpr auto kSize = static_cast<int64_t>(sizeof(V));
    if ((i + 1) * kSize > size) return 0;
    V value;
    memcpy(&value, data + i * kSize, sizeof(V));
    return static_cast<float>(value);
  }
};

}  // namespace ddp_compress
