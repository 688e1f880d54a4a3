// Run-time choice of AVX2: baseline builds run anywhere, and use the wide registers where they are.
#pragma once

#include <cstdlib>

#if (defined(__x86_64__) || defined(_M_X64)) && defined(__GNUC__)
#define DDP_COMPRESS_AVX2 1
#include <immintrin.h>
#define DDP_COMPRESS_TARGET_AVX2 __attribute__((target("avx2,f16c")))
#endif

// A function that is compiled once more into every caller, with the caller's registers.
#if defined(__GNUC__)
#define DDP_COMPRESS_INLINE inline __attribute__((always_inline))
#else
#define DDP_COMPRESS_INLINE inline
#endif

namespace ddp_compress {

// False on other machines, and where DDP_COMPRESS_PORTABLE is set (the tests compare both paths).
inline bool use_avx2() {
#ifdef DDP_COMPRESS_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") &&
         std::getenv("DDP_COMPRESS_PORTABLE") == nullptr;
#else
  return false;
#endif
}

}  // namespace ddp_compress
