// Parameters, some of them convolutions' in either memory format.
#pragma once

#include "../csrc/kernels.h"
#include "random.h"

namespace ddp_compress::fuzz {

struct KernelShape {
  std::vector<int64_t> bounds{0}, numels, strides;

  explicit KernelShape(Random& random) {
    for (int64_t params = random.size(6); params > 0; --params) {
      const bool single = random.one_in(3);
      numels.push_back(single ? 1 : 2 + random.size(random.one_in(8) ? 200 : 9));
      strides.push_back(single || random.one_in(2) ? 1 : 1 + random.size(40));
      bounds.push_back(bounds.back() + numels.back() * strides.back() * random.size(80));
    }
  }

  KernelTables tables() const {
    return {bounds.data(), numels.data(), strides.data(), std::ssize(numels)};
  }
  int64_t numel() const { return bounds.back(); }
  int64_t kernels() const {
    int64_t count = 0;
    for (size_t p = 0; p < numels.size(); ++p)
      if (numels[p] > 1) count += (bounds[p + 1] - bounds[p]) / numels[p];
    return count;
  }
};

}  // namespace ddp_compress::fuzz
