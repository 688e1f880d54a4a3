// A stand-in for CUDA's header: builds kernels with a C++ compiler and runs them on the CPU.
//
// So the logic of csrc/cuda is tested where there is no GPU, bit for bit. The threads of a block
// are fibers that take turns at barriers. Blocks run one after another, or, where the launch is
// cooperative, beside each other on threads of the operating system. The orders of fibers and
// blocks are drawn anew for each launch, so a missing barrier, or a block that counts on an earlier
// one being done, gives wrong results sooner or later. What it cannot show: memory ordering,
// alignment, occupancy, time.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static thread_local  // a block stays on its thread
#define __restrict__
#define __launch_bounds__(...)

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1) : x(x) {}
};

// ------------------------------------------------------------------------------ vector loads

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

// ------------------------------------------------------------------------------- the host's API

using cudaError_t = int;
using cudaStream_t = void*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
constexpr cudaError_t cudaSuccess = 0;

inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

// ----------------------------------------------------------------------------- a block of fibers

namespace emulation {

constexpr size_t kStack = 128 * 1024;
constexpr unsigned kMostThreads = 1024;
constexpr unsigned kLanes = 32;

struct Warp {
  uint64_t slots[kLanes];
  unsigned arrived = 0;  // lanes at the barrier
  unsigned exited = 0;   // lanes that have returned
  uint64_t turn = 0;
};

struct Block {
  std::vector<ucontext_t> fibers{kMostThreads};
  std::unique_ptr<char[]> stacks{new char[kStack * kMostThreads]};
  ucontext_t scheduler;
  std::function<void()> kernel;
  std::vector<Warp> warps;
  std::vector<bool> done;
  unsigned threads = 0, current = 0, waiting = 0, alive = 0;
  uint64_t turn = 0, progress = 0;
};

inline Block& block() {
  static thread_local Block the_block;
  return the_block;
}

inline thread_local uint3 thread_index, block_index;
inline thread_local dim3 block_size, grid_size;
inline uint64_t launches = 0;
inline unsigned arrived = 0;  // blocks of this launch, at barriers of the grid

inline void yield() {
  Block& b = block();
  const unsigned me = b.current;
  swapcontext(&b.fibers[me], &b.scheduler);
  thread_index.x = me;
}

inline void release_block() {
  Block& b = block();
  if (b.alive > 0 && b.waiting == b.alive) {
    b.waiting = 0;
    ++b.turn;
  }
}

inline void release_warp(Warp& warp, unsigned mask) {
  const unsigned wanted = mask & ~warp.exited;
  if (wanted != 0 && (warp.arrived & wanted) == wanted) {
    warp.arrived &= ~wanted;
    ++warp.turn;
  }
}

inline void wait_for_block() {
  Block& b = block();
  const uint64_t turn = b.turn;
  ++b.waiting;
  ++b.progress;
  release_block();
  while (b.turn == turn) yield();
}

inline Warp& warp() { return block().warps[thread_index.x / kLanes]; }
inline unsigned lane() { return thread_index.x % kLanes; }

inline void wait_for_warp(unsigned mask) {
  Warp& w = warp();
  if (!(mask >> lane() & 1)) {
    std::fputs("emulation: a lane is not in its own mask\n", stderr);
    std::abort();
  }
  const uint64_t turn = w.turn;
  w.arrived |= 1u << lane();
  ++block().progress;
  release_warp(w, mask);
  while (w.turn == turn) yield();
}

inline void run_fiber() {
  Block& b = block();
  b.kernel();
  const unsigned me = b.current;
  b.done[me] = true;
  --b.alive;
  ++b.progress;
  Warp& w = b.warps[me / kLanes];
  w.exited |= 1u << me % kLanes;
  if (w.arrived) release_warp(w, w.arrived | 1u << me % kLanes);
  release_block();
}

// One value from every lane of the mask to every other.
template <typename T>
T exchange(unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  Warp& w = warp();
  w.slots[lane()] = bits;
  wait_for_warp(mask);
  bits = w.slots[from % kLanes];
  wait_for_warp(mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename Combine>
uint64_t reduce(unsigned mask, uint64_t value, Combine combine) {
  Warp& w = warp();
  w.slots[lane()] = value;
  wait_for_warp(mask);
  bool first = true;
  uint64_t all = 0;
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!(mask & ~w.exited & 1u << i)) continue;
    all = first ? w.slots[i] : combine(all, w.slots[i]);
    first = false;
  }
  wait_for_warp(mask);
  return all;
}

}  // namespace emulation

namespace emulation {

inline std::mt19937& random_numbers() {
  static std::mt19937 random{20240607};
  return random;
}

inline std::vector<unsigned> shuffled(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random_numbers());
  return order;
}

// Runs one block: its threads in turns, until all have returned.
inline void run_block(unsigned number, dim3 blocks, dim3 threads,
                      const std::vector<unsigned>& order, const std::function<void()>& kernel) {
  Block& b = block();
  b.kernel = kernel;
  block_index.x = number;
  block_size = threads;
  grid_size = blocks;
  b.warps.assign((threads.x + kLanes - 1) / kLanes, Warp{});
  for (unsigned t = threads.x; t % kLanes; ++t) b.warps.back().exited |= 1u << t % kLanes;
  b.done.assign(threads.x, false);
  b.alive = threads.x;
  b.waiting = 0;
  for (unsigned t = 0; t < threads.x; ++t) {
    ucontext_t& fiber = b.fibers[t];
    getcontext(&fiber);
    fiber.uc_stack.ss_sp = b.stacks.get() + kStack * t;
    fiber.uc_stack.ss_size = kStack;
    fiber.uc_link = &b.scheduler;
    makecontext(&fiber, run_fiber, 0);
  }
  while (b.alive > 0) {
    const uint64_t before = b.progress;
    for (const unsigned t : order) {
      if (b.done[t]) continue;
      b.current = thread_index.x = t;
      swapcontext(&b.scheduler, &b.fibers[t]);
    }
    if (b.alive > 0 && b.progress == before) {
      std::fputs("emulation: the threads of a block wait for each other for ever\n", stderr);
      std::abort();
    }
  }
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size
constexpr int warpSize = 32;

// Runs a kernel's blocks: all of them together where they wait for each other.
inline void emulate(unsigned blocks, unsigned threads, bool together,
                    const std::function<void()>& kernel) {
  using namespace emulation;
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  if (threads > kMostThreads) std::abort();
  const dim3 grid{blocks}, size{threads};
  if (!together) {
    for (const unsigned number : shuffled(blocks))
      run_block(number, grid, size, shuffled(threads), kernel);
    return;
  }
  ++launches;
  arrived = 0;
  std::vector<std::thread> running;
  for (unsigned number = 0; number < blocks; ++number)
    running.emplace_back(
        [&, number, order = shuffled(threads)] { run_block(number, grid, size, order, kernel); });
  for (std::thread& each : running) each.join();
}

// ----------------------------------------------------------------------------------- in kernels

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emulation::wait_for_warp(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(emulation::reduce(
      mask, predicate ? uint64_t{1} << emulation::lane() : 0, std::bit_or<uint64_t>()));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline int __syncthreads_or(int predicate) {
  static thread_local int any;
  __syncthreads();
  any = 0;
  __syncthreads();
  if (predicate) any = 1;
  __syncthreads();
  return any;
}
inline int __syncthreads_count(int predicate) {
  static thread_local int count;
  __syncthreads();
  count = 0;
  __syncthreads();
  if (predicate) ++count;
  __syncthreads();
  return count;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  return emulation::exchange(mask, value, static_cast<unsigned>(from));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  const unsigned me = emulation::lane();
  return emulation::exchange(mask, value, me >= delta ? me - delta : me);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const unsigned me = emulation::lane();
  return emulation::exchange(mask, value, me + delta < emulation::kLanes ? me + delta : me);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return emulation::exchange(mask, value, emulation::lane() ^ static_cast<unsigned>(lanes));
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(emulation::reduce(mask, value, std::plus<uint64_t>()));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(
      emulation::reduce(mask, value, [](uint64_t a, uint64_t b) { return std::max(a, b); }));
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(emulation::reduce(mask, value, std::bit_or<uint64_t>()));
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return x ? std::countr_zero(static_cast<unsigned>(x)) + 1 : 0; }
inline int __ffsll(long long x) {
  return x ? std::countr_zero(static_cast<unsigned long long>(x)) + 1 : 0;
}
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}

inline void __nanosleep(unsigned) { std::this_thread::yield(); }

// As in CUDA, these exist for int, unsigned and unsigned long long alone (float sums would depend
// on the order of threads).
template <typename T, typename Combine>
T emulated_atomic(T* p, Combine combine) {
  T old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
  T next = combine(old);
  while (!__atomic_compare_exchange_n(p, &old, next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
    next = combine(old);
  return old;
}
#define EMULATED_ATOMIC(name, expression)                                           \
  inline int name(int* p, int value) {                                              \
    return emulated_atomic(p, [=](int old) { return expression; });                 \
  }                                                                                 \
  inline unsigned name(unsigned* p, unsigned value) {                               \
    return emulated_atomic(p, [=](unsigned old) { return expression; });            \
  }                                                                                 \
  inline unsigned long long name(unsigned long long* p, unsigned long long value) { \
    return emulated_atomic(p, [=](unsigned long long old) { return expression; });  \
  }
EMULATED_ATOMIC(atomicAdd, old + value)
EMULATED_ATOMIC(atomicMax, std::max(old, value))
EMULATED_ATOMIC(atomicMin, std::min(old, value))
EMULATED_ATOMIC(atomicOr, old | value)
EMULATED_ATOMIC(atomicAnd, old& value)
EMULATED_ATOMIC(atomicExch, value)
#undef EMULATED_ATOMIC
template <typename T>
T atomicCAS(T* p, T compare, T value) {
  return emulated_atomic(p, [=](T old) { return old == compare ? value : old; });
}
