#pragma once

#ifdef __CUDACC__
#define DDP_COMPRESS_HD __host__ __device__
#else
#define DDP_COMPRESS_HD
#endif
