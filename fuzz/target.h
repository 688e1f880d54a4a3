// What is fuzzed: a kernel, how to make an input for it, and what must hold of any input.
//
// Buffers have exactly the sizes that the kernels were told, so that AddressSanitizer sees whatever
// lies outside. ops.cpp refuses arguments of the wrong kind; only what it lets through comes here.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "random.h"

namespace ddp_compress::fuzz {

// The bytes of one input, read from the front; past their end there are zeros.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  template <typename T>
  T take() {
    T value{};
    const size_t here = std::min(sizeof(T), size_);
    if (here > 0) std::memcpy(&value, data_, here);
    data_ += here;
    size_ -= here;
    return value;
  }

  Bytes rest() const { return {data_, data_ + size_}; }

 private:
  const uint8_t* data_;
  size_t size_;
};

struct Target {
  const char* name;
  // An input that is accepted.
  Bytes (*valid)(Random& random);
  // Whether an input is accepted. Ends the program where a promise is broken.
  bool (*accepts)(Input in);
};

// A decoder's input: what parameters are drawn from, how much the limit is off, then the message.
// A sender may take the receiver's limit for another.
inline Bytes input_of(uint32_t shape, const Bytes& message) {
  Bytes all(sizeof(shape) + 1);
  std::memcpy(all.data(), &shape, sizeof(shape));
  all.insert(all.end(), message.begin(), message.end());
  return all;
}

// An input that is but a seed: all else is drawn from it.
inline Bytes seed(Random& random) { return random.bytes(sizeof(uint64_t)); }

template <typename T>
bool ascend_within(const std::vector<T>& positions, int64_t numel) {
  int64_t end = 0;
  for (const T each : positions) {
    if (each < end) return false;
    end = int64_t{each} + 1;
  }
  return end <= numel;
}

inline bool is_decode_error(int64_t status) { return status >= -8 && status <= -1; }

#define EXPECT(condition)                                                         \
  do {                                                                            \
    if (condition) break;                                                         \
    std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
    std::abort();                                                                 \
  } while (false)

extern const Target kAccumulate, kBallot, kCells, kEliasFano, kEntries, kGolomb, kKernelLists,
    kRans, kRotated, kScatterAdd, kSegmentMeans, kSigns, kTopK, kWholeKernels;

inline const Target* const kTargets[] = {&kEliasFano,   &kEntries,     &kGolomb,     &kRans,
                                         &kCells,       &kRotated,     &kSigns,      &kBallot,
                                         &kTopK,        &kAccumulate,  &kScatterAdd, &kSegmentMeans,
                                         &kKernelLists, &kWholeKernels};

}  // namespace ddp_compress::fuzz
