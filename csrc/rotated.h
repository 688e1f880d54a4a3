// How groups of values are cut into blocks of coefficients, and what travels of these:
//
//   [fp32: the values that fill no block, group after group]
//   [fp32: the lowest level and the step to the next one, of every block]
//   [a code for every coefficient that travels; every block padded with 0 to a whole byte]
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "butterflies.h"
#include "host_device.h"

namespace ddp_compress {

constexpr int64_t kSmallestBlock = 32;  // coefficients; all blocks have a power of two
constexpr int64_t kMasks = 2 * kLargestBlock - kSmallestBlock;  // of a block of every size
constexpr float kFarthest = 1e26f;                              // values beyond are cut off there
constexpr float kDeviation = 1.2533141f;  // sqrt(pi / 2): of normal variables of mean magnitude 1

// What sender and receivers know beforehand.
struct Rotation {
  const int64_t* sizes;  // values of every group
  int64_t groups;
  const int64_t* signs;  // a salt of every group; null where nothing is turned
  const int64_t* free;   // which of every 32 coefficients has no value; null where all have one
  const bool* sent;      // of n coefficients from n - 32 on, whether each travels; null: all do
  int bits;              // of a code
};

// What a sender draws and chooses.
struct Drawn {
  const int64_t* noises;  // a salt of every group
  bool unbiased;          // whether coefficients that travel stand for the others, too
  int64_t iterations;     // of Kashin's representation; 1 cuts off nothing
};

struct Block {
  int64_t value, byte;    // where its values and its codes begin
  int32_t group, number;  // the how-manieth of its group
  int32_t size, kept;     // coefficients, and how many of them travel
  int32_t list;           // where the places of these begin in Cut::sent
};

// Values that fill no block: where they begin, among all and among those of their kind.
struct Rest {
  int64_t value, exact, count;
};

// Where values of some whole groups are added, each clipped to the limit and scaled.
template <typename G, typename A>
struct Sum {
  G* out;
  int64_t first, numel;  // which values
  float limit;
  A scale;
  bool afresh;  // as if out were zero before

  DDP_COMPRESS_HD bool holds(int64_t value) const {
    return value >= first && value < first + numel;
  }
  DDP_COMPRESS_HD A term(float value) const {
    const float clipped = value > limit ? limit : value < -limit ? -limit : value;
    return static_cast<A>(clipped) * scale;
  }
};

struct Cut {
  std::vector<Block> blocks;
  std::vector<Rest> rests;
  std::vector<uint16_t> sent;  // places in a block of every size; none where all travel
  int64_t values = 0, left_over = 0;
  int64_t bytes = 0;  // of the message

  explicit Cut(const Rotation& rotation) {
    if (rotation.sent) list_sent(rotation.sent);
    const int64_t hold = rotation.free ? kSmallestBlock - 1 : kSmallestBlock;
    for (int64_t g = 0; g < rotation.groups; ++g) {
      int64_t units = rotation.sizes[g] / hold;
      int32_t number = 0;
      for (int32_t size = kLargestBlock; units > 0; size /= 2) {
        for (const int64_t each = size / kSmallestBlock; units >= each; units -= each) {
          add({values, bytes, static_cast<int32_t>(g), number++, size, size, 0}, rotation);
          values += each * hold;
        }
      }
      rests.push_back({values, left_over, rotation.sizes[g] % hold});
      values += rests.back().count;
      left_over += rests.back().count;
    }
    const int64_t codes = 4 * left_over + 8 * static_cast<int64_t>(blocks.size());
    for (Block& block : blocks) block.byte += codes;
    bytes += codes;
  }

 private:
  void list_sent(const bool* masks) {
    for (int64_t size = kSmallestBlock; size <= kLargestBlock; size *= 2) {
      lists_.push_back(static_cast<int32_t>(sent.size()));
      for (int64_t i = 0; i < size; ++i)
        if (masks[size - kSmallestBlock + i]) sent.push_back(static_cast<uint16_t>(i));
    }
    lists_.push_back(static_cast<int32_t>(sent.size()));
  }

  void add(Block block, const Rotation& rotation) {
    if (rotation.sent) {
      size_t list = 0;
      while (kSmallestBlock << list < block.size) ++list;
      block.list = lists_[list];
      block.kept = lists_[list + 1] - block.list;
    }
    blocks.push_back(block);
    bytes += (rotation.bits * block.kept + 7) / 8;
  }

  std::vector<int32_t> lists_;  // of every size, and the end of all
};

// What a coefficient that travels weighs where it stands for the others, too.
DDP_COMPRESS_HD inline float weight(const Block& block) {
  return static_cast<float>(static_cast<double>(block.size) / static_cast<double>(block.kept));
}

}  // namespace ddp_compress
