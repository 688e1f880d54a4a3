// Run-time choice of AVX2 and AVX-512: baseline builds run anywhere, and use the wide registers
// where they are.
#pragma once

#include <cstdint>
#include <cstdlib>

#if (defined(__x86_64__) || defined(_M_X64)) && defined(__GNUC__)
#define DDP_COMPRESS_AVX2 1
#include <cpuid.h>
#include <immintrin.h>
#define DDP_COMPRESS_TARGET_AVX2 __attribute__((target("avx2,f16c")))
#ifdef __clang__  // which does not know what GCC prefers narrower registers without
#define DDP_COMPRESS_TARGET_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl")))
#else
#define DDP_COMPRESS_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#endif

// A function that is compiled once more into every caller, with the caller's registers.
#if defined(__GNUC__)
#define DDP_COMPRESS_INLINE inline __attribute__((always_inline))
#else
#define DDP_COMPRESS_INLINE inline
#endif

namespace ddp_compress {

#ifdef DDP_COMPRESS_AVX2
// Asked of the processor itself: older compilers' __builtin_cpu_supports does not know it.
inline bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// Whether a wide register can be stored there past the caches.
inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 64 == 0; }

// What was stored past the caches is there before anything that is stored from now on.
inline void end_streams() {
#ifdef DDP_COMPRESS_AVX2
  _mm_sfence();
#endif
}

// False on other machines, and where DDP_COMPRESS_PORTABLE is set (the tests compare both paths).
inline bool use_avx2() {
#ifdef DDP_COMPRESS_AVX2
  static const bool wide = __builtin_cpu_supports("avx2") && has_f16c();
  return wide && std::getenv("DDP_COMPRESS_PORTABLE") == nullptr;
#else
  return false;
#endif
}

// Sixteen floats at once, and products of 64-bit integers. False, too, where DDP_COMPRESS_AVX2 is
// set.
inline bool use_avx512() {
#ifdef DDP_COMPRESS_AVX2
  static const bool wide = __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide && use_avx2() && std::getenv("DDP_COMPRESS_AVX2") == nullptr;
#else
  return false;
#endif
}

}  // namespace ddp_compress
