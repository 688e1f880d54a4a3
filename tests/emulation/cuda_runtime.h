// A stand-in for CUDA's header: builds kernels with a C++ compiler and runs them on the CPU.
//
// So the logic of csrc/cuda is tested where there is no GPU, bit for bit. The threads of a block
// are fibers that take turns at barriers. Blocks run one after another, or, where they take turns
// themselves, some beside each other on threads of the operating system. How many these are, and
// the orders of fibers and blocks, are drawn anew for each launch, so a missing barrier, or a block
// that counts on another one being done, or running, gives wrong results or none sooner or later.
// What it cannot show: memory ordering, alignment, occupancy, time.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
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
#define __grid_constant__

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

// What was asked of the device, for benches that count it. Launches are kernels, fills, and copies
// within it.
extern "C" {
[[gnu::used]] inline std::atomic<uint64_t> emulated_launches, emulated_to_device,
    emulated_from_device, emulated_waits;
}

inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++emulated_waits;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  ++emulated_launches;
  std::memset(data, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t) {
  ++(kind == cudaMemcpyHostToDevice   ? emulated_to_device
     : kind == cudaMemcpyDeviceToHost ? emulated_from_device
                                      : emulated_launches);
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

// A thread of a block. Once begun it goes on from block to block: a jump costs much less than a
// new context.
struct Fiber {
  jmp_buf here;
  bool begun = false, done = false;
  const uint64_t* turn = nullptr;  // waits until this is no longer `waited`
  uint64_t waited = 0;
};

struct Block {
  std::vector<Fiber> fibers{kMostThreads};
  std::unique_ptr<char[]> stacks{new char[kStack * kMostThreads]};
  jmp_buf scheduler;
  const std::function<void()>* kernel = nullptr;
  std::vector<Warp> warps;
  unsigned current = 0, waiting = 0, alive = 0;
  uint64_t turn = 0;
};

inline Block& block() {
  static thread_local Block the_block;
  return the_block;
}

inline thread_local uint3 thread_index, block_index;
inline thread_local dim3 block_size, grid_size;
inline std::chrono::steady_clock::time_point begun;  // the launch

inline void leave() {
  Block& b = block();
  if (_setjmp(b.fibers[b.current].here) == 0) _longjmp(b.scheduler, 1);
  thread_index.x = block().current;
}

inline void wait_for_next(const uint64_t& turn, uint64_t now) {
  if (turn != now) return;
  Block& b = block();
  Fiber& me = b.fibers[b.current];
  me.turn = &turn;
  me.waited = now;
  leave();
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
  release_block();
  wait_for_next(b.turn, turn);
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
  release_warp(w, mask);
  wait_for_next(w.turn, turn);
}

inline void run_fiber() {
  for (;; leave()) {
    Block& b = block();
    (*b.kernel)();
    const unsigned me = b.current;
    b.fibers[me].done = true;
    --b.alive;
    Warp& w = b.warps[me / kLanes];
    w.exited |= 1u << me % kLanes;
    if (w.arrived) release_warp(w, w.arrived | 1u << me % kLanes);
    release_block();
  }
}

// Runs a fiber until it leaves.
inline void resume(unsigned number) {
  Block& b = block();
  Fiber& fiber = b.fibers[number];
  b.current = thread_index.x = number;
  fiber.turn = nullptr;
  if (_setjmp(b.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = b.stacks.get() + kStack * number;
  start.uc_stack.ss_size = kStack;
  makecontext(&start, run_fiber, 0);
  setcontext(&start);
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

inline std::vector<unsigned> shuffled(unsigned count, std::mt19937& random) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

// Runs one block: its threads in turns, until all have returned.
inline void run_block(unsigned number, dim3 blocks, dim3 threads,
                      const std::vector<unsigned>& order, const std::function<void()>& kernel) {
  Block& b = block();
  b.kernel = &kernel;
  block_index.x = number;
  block_size = threads;
  grid_size = blocks;
  b.warps.assign((threads.x + kLanes - 1) / kLanes, Warp{});
  for (unsigned t = threads.x; t % kLanes; ++t) b.warps.back().exited |= 1u << t % kLanes;
  b.alive = threads.x;
  b.waiting = 0;
  for (unsigned t = 0; t < threads.x; ++t) {
    b.fibers[t].done = false;
    b.fibers[t].turn = nullptr;
  }
  while (b.alive > 0) {
    bool moved = false;
    for (const unsigned t : order) {
      const Fiber& fiber = b.fibers[t];
      if (fiber.done || (fiber.turn && *fiber.turn == fiber.waited)) continue;
      moved = true;
      resume(t);
    }
    if (!moved) {
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

// Runs a kernel's blocks one after another; or, where they wait for each other, as many beside each
// other as is drawn, be it one.
inline void emulate(unsigned blocks, unsigned threads, bool in_turns,
                    const std::function<void()>& kernel) {
  using namespace emulation;
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  if (threads > kMostThreads) std::abort();
  ++emulated_launches;
  begun = std::chrono::steady_clock::now();
  std::mt19937& random = random_numbers();
  const unsigned workers = in_turns ? 1 + random() % blocks : 1;
  const std::vector<unsigned> order = shuffled(blocks, random);
  std::atomic<unsigned> taken = 0;
  const auto work = [&](unsigned seed) {
    std::mt19937 own(seed);
    for (unsigned i = taken++; i < blocks; i = taken++)
      run_block(order[i], {blocks}, {threads}, shuffled(threads, own), kernel);
  };
  std::vector<std::thread> others;
  for (unsigned w = 1; w < workers; ++w) others.emplace_back(work, random());
  work(random());
  for (std::thread& each : others) each.join();
}

// ----------------------------------------------------------------------------------- in kernels

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emulation::wait_for_warp(mask); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
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

inline void __nanosleep(unsigned) {
  if (std::chrono::steady_clock::now() - emulation::begun > std::chrono::minutes(2)) {
    std::fputs("emulation: the blocks of a grid wait for each other for ever\n", stderr);
    std::abort();
  }
  std::this_thread::sleep_for(std::chrono::microseconds(20));  // yielding starves the others
}

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
