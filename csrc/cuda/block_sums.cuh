// How a list is numbered that the blocks of a grid write together.
#pragma once

#include "grid.cuh"

namespace ddp_compress::cuda {

// Of what each block counted: the sum of the blocks before this one, and of all.
struct BlockSums {
  int64_t before, total;
};

// Every thread of the block comes here, after wait_for_grid.
template <int kThreads>
__device__ BlockSums sum_blocks(const int64_t* counts) {
  BlockSums mine{0, 0};
  for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads) {
    const int64_t count = __ldcg(counts + block);
    mine.total += count;
    if (block < blockIdx.x) mine.before += count;
  }
  return {sum_of_block<kThreads>(mine.before), sum_of_block<kThreads>(mine.total)};
}

}  // namespace ddp_compress::cuda
