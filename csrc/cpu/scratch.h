// Memory that a thread keeps from one call to the next. To give it back and to take it anew costs
// its pages each time, which is a third of what a selection takes.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace ddp_compress {

template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t size) {
    if (kept().capacity() < kBlocks) kept().reserve(kBlocks);  // to give back must not fail
    if (!kept().empty()) {
      block_ = std::move(kept().back());
      kept().pop_back();
    }
    if (block_.size < size) block_ = {std::unique_ptr<T[]>(new T[static_cast<size_t>(size)]), size};
  }
  ~Scratch() {
    if (block_.size <= kMost) kept().push_back(std::move(block_));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get() const { return block_.data.get(); }
  T& operator[](int64_t i) const { return block_.data[static_cast<size_t>(i)]; }

 private:
  // More is given back: a density that warms up is large once.
  static constexpr int64_t kMost = int64_t{1} << 22;
  static constexpr size_t kBlocks = 16;  // at once in a thread; there are four

  struct Block {
    std::unique_ptr<T[]> data;
    int64_t size = 0;
  };
  static std::vector<Block>& kept() {
    static thread_local std::vector<Block> blocks;
    return blocks;
  }

  Block block_;
};

}  // namespace ddp_compress
