// How a list is numbered that the blocks of a grid write together.
#pragma once

#include <cooperative_groups.h>

#include <tuple>

#include "grid.cuh"

namespace ddp_compress::cuda {

// A barrier for all blocks of a kernel that `launch_together` runs. Every thread of every block
// comes here; what they wrote before, all see afterwards.
__device__ inline void wait_for_grid() { cooperative_groups::this_grid().sync(); }

// Runs a kernel whose blocks wait for each other on as many as there is room for at once, but no
// more than `wanted`; at least one.
template <typename... Parameters, typename... Arguments>
void launch_together(const Device& device, int64_t wanted, int threads,
                     void (*kernel)(Parameters...), Arguments... arguments) {
  const auto blocks =
      static_cast<unsigned>(std::clamp<int64_t>(wanted, 1, room_for_blocks(kernel, threads)));
#ifdef __CUDACC__
  std::tuple<Parameters...> values(arguments...);
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value...};
        check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks),
                                          dim3(threads), pointers, 0, stream_of(device)));
      },
      values);
#else
  emulate(blocks, static_cast<unsigned>(threads), Launch::kTogether, [&] { kernel(arguments...); });
#endif
}

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
