// Random numbers that one seed decides, so that every message can be made again.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace ddp_compress::fuzz {

using Bytes = std::vector<uint8_t>;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t operator()() {  // splitmix64
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }

  int64_t below(int64_t end) {
    return static_cast<int64_t>((*this)() % static_cast<uint64_t>(end));
  }
  bool one_in(int64_t n) { return below(n) == 0; }

  // Up to `most`, of any magnitude; both ends come often.
  int64_t size(int64_t most) {
    if (one_in(16)) return most;
    const int bits = static_cast<int>(below(1 + std::bit_width(static_cast<uint64_t>(most))));
    return std::min(most, below(int64_t{1} << bits));
  }

  Bytes bytes(int64_t count) {
    Bytes all(static_cast<size_t>(count));
    for (uint8_t& byte : all) byte = static_cast<uint8_t>((*this)());
    return all;
  }

  // At most `count` ascending positions below `numel`, alone and in runs.
  std::vector<int32_t> positions(int64_t numel, int64_t count) {
    std::vector<int32_t> found;
    for (int64_t next = 0, run = 0; numel > 0 && std::ssize(found) < count; --run) {
      if (run <= 0 || next == numel) {
        next = below(numel);
        run = one_in(8) ? size(64) : 1;
      }
      found.push_back(static_cast<int32_t>(next++));
    }
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
  }

  // Offsets of up to `most_parts` parts of `numel` elements; empty ones too.
  std::vector<int64_t> bounds(int64_t numel, int64_t most_parts) {
    const int64_t parts = numel > 0 ? 1 + size(most_parts - 1) : size(most_parts);
    std::vector<int64_t> cuts{0};
    for (int64_t i = 1; i < parts; ++i) cuts.push_back(one_in(4) ? cuts.back() : below(numel + 1));
    if (parts > 0) cuts.push_back(numel);
    std::sort(cuts.begin(), cuts.end());
    return cuts;
  }

 private:
  uint64_t state_;
};

}  // namespace ddp_compress::fuzz
