#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>

#include "../elias_fano_layout.h"
#include "../kernels.h"
#include "../wire_format.h"
#include "../wire_values.h"

namespace ddp_compress {
namespace {

// Returns whether all are finite.
template <typename V>
bool spread(const WireValues<V>& means, const int64_t* edges, int64_t groups, float* values) {
  bool finite = true;
  int64_t begin = 0;
  for (int64_t g = 0; g < groups; begin = edges[g++]) {
    const float mean = means[g];
    finite &= std::isfinite(mean);
    std::fill(values + begin, values + edges[g], mean);
  }
  return finite;
}

template <typename V>
bool convert(const WireValues<V>& from, int64_t count, float* values) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    values[i] = from[i];
    finite &= std::isfinite(values[i]);
  }
  return finite;
}

}  // namespace

template <typename V>
void entries_decode(const uint8_t* data, int64_t size, Groups groups, int64_t numel, int64_t k,
                    bool means, int32_t* indices, float* values, int64_t* words) {
  const int64_t bytes = elias_fano_size(numel, k);
  const int64_t found = elias_fano_decode(data, size, numel, k, indices);
  const int64_t count = std::max<int64_t>(found, 0);
  std::fill(indices + count, indices + k, kUnused);
  int64_t* const edges = words + 1;
  int64_t inside = 0;
  for (int64_t g = 0; g < groups.count; ++g)
    inside = edges[g] =
        std::lower_bound(indices + inside, indices + count, groups.ends[g]) - indices;
  std::fill(values + (means ? inside : count), values + k, 0.0f);
  words[0] = found < 0 ? found : bytes;
  if (found < 0) return;

  const WireValues<V> given{data + bytes, size - bytes};
  const bool finite =
      means ? spread(given, edges, groups.count, values) : convert(given, count, values);
  const auto wanted = (means ? groups.count : count) * static_cast<int64_t>(sizeof(V));
  if (!finite || inside != count || given.size != wanted) words[0] = kBadValues;
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
#define INSTANTIATE(V)                                                                     \
  template void entries_decode<V>(const uint8_t*, int64_t, Groups, int64_t, int64_t, bool, \
                                  int32_t*, float*, int64_t*);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace ddp_compress
