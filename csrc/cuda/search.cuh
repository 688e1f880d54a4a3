// Searches among numbers that ascend, of which at(i) is the i-th. They end, and stay within their
// bounds, whatever the numbers are.
#pragma once

#include "launch.cuh"

namespace ddp_compress::cuda {

// The first of [begin, end) that is not below a value; the end where there is none.
template <typename Index, typename T, typename At>
__device__ Index first_from(T value, Index begin, Index end, At at) {
  while (begin < end) {
    const Index middle = begin + (end - begin) / 2;
    if (at(middle) < value)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// The last of [begin, end) that is not above a limit, which the first is not.
template <typename Index, typename T, typename At>
__device__ Index last_up_to(T limit, Index begin, Index end, At at) {
  while (end - begin > 1) {
    const Index middle = begin + (end - begin) / 2;
    (at(middle) <= limit ? begin : end) = middle;
  }
  return begin;
}

}  // namespace ddp_compress::cuda
