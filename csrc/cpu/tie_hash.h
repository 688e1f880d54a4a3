// The hash of places that come in ascending order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../tie_hash.h"

namespace ddp_compress {

// Where ascending positions lie: their parameter's salt, and their offset in it.
class Places {
 public:
  Places(const int64_t* bounds, const int64_t* salts, int64_t params, int64_t first)
      : end_(std::upper_bound(bounds, bounds + params, first)),
        salt_(salts + (end_ - bounds) - 1) {}

  uint32_t hash(int64_t position, uint64_t draw) {
    for (; position >= *end_; ++end_) ++salt_;
    return tie_hash(static_cast<uint64_t>(*salt_), static_cast<uint64_t>(position - end_[-1]),
                    draw);
  }

 private:
  const int64_t* end_;  // the parameter's, within bounds
  const int64_t* salt_;
};

}  // namespace ddp_compress
