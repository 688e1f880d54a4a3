#include "../checksum.h"

#include <cstring>

#include "../kernels.h"

namespace ddp_compress {

uint32_t checksum(const uint8_t* data, int64_t size) {
  uint32_t sum = mix(static_cast<uint32_t>(size));
  const int64_t words = size / 4;
  for (int64_t i = 0; i < words; ++i) {
    uint32_t word;
    std::memcpy(&word, data + 4 * i, 4);
    sum += mix_word(word, i);
  }
  uint32_t tail = 0;
  if (size % 4) std::memcpy(&tail, data + 4 * words, static_cast<size_t>(size % 4));
  return sum + mix_word(tail, words);
}

}  // namespace ddp_compress
