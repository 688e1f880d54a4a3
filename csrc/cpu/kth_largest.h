#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

namespace ddp_compress {

// The k-th largest of some integers (k counts from 1), by histograms of ever finer ranges.
template <typename K>
K kth_largest(const K* keys, int64_t count, int64_t k) {
  if (k == 1) return *std::max_element(keys, keys + count);
  using Distance = std::make_unsigned_t<K>;
  constexpr int kBits = 11;
  std::vector<K> rest;  // the keys of the bin that holds the k-th
  while (count > 1024) {
    K base = keys[0], top = keys[0];
    for (int64_t i = 0; i < count; ++i) {
      base = std::min(base, keys[i]);
      top = std::max(top, keys[i]);
    }
    const auto above = [base](K key) {
      return static_cast<Distance>(key) - static_cast<Distance>(base);
    };
    const int shift = std::max(0, static_cast<int>(std::bit_width(above(top))) - kBits);
    std::array<uint32_t, size_t{1} << kBits> histogram{};
    for (int64_t i = 0; i < count; ++i) ++histogram[above(keys[i]) >> shift];
    size_t bin = histogram.size() - 1;
    for (; histogram[bin] < k; --bin) k -= histogram[bin];
    if (shift == 0) return static_cast<K>(static_cast<Distance>(base) + bin);
    std::vector<K> inside;
    inside.reserve(histogram[bin]);
    for (int64_t i = 0; i < count; ++i)
      if ((above(keys[i]) >> shift) == bin) inside.push_back(keys[i]);
    rest = std::move(inside);
    keys = rest.data();
    count = static_cast<int64_t>(rest.size());
  }
  std::vector<K> few(keys, keys + count);
  std::nth_element(few.begin(), few.begin() + (k - 1), few.end(), std::greater<K>());
  return few[static_cast<size_t>(k - 1)];
}

}  // namespace ddp_compress
