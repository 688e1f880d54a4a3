// The same targets, guided by coverage: TARGET=golomb build/libfuzzer/main -max_total_time=60
#include <string>

#include "target.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

using namespace ddp_compress::fuzz;

const Target& target() {
  static const Target& chosen = []() -> const Target& {
    const char* name = std::getenv("TARGET");
    for (const Target* each : kTargets)
      if (name && std::string(name) == each->name) return *each;
    std::fprintf(stderr, "TARGET must name a target, got %s\n", name ? name : "none");
    std::exit(2);
  }();
  return chosen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  target().accepts({data, size});
  return 0;
}

// Now and then a valid message: no mutation finds its way to one.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  Random random(seed);
  if (!random.one_in(16)) return LLVMFuzzerMutate(data, size, max_size);
  const Bytes valid = target().valid(random);
  const size_t used = std::min(valid.size(), max_size);
  std::copy_n(valid.begin(), used, data);
  return used;
}
