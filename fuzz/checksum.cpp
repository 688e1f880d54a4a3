#include "../csrc/kernels.h"
#include "target.h"

namespace ddp_compress::fuzz {
namespace {

Bytes valid(Random& random) { return random.bytes(1 + random.size(300)); }

// A change within one byte is always noticed.
bool accepts(Input in) {
  Random random(in.take<uint64_t>());
  Bytes data = in.rest();
  const uint32_t sum = checksum(data.data(), std::ssize(data));
  if (data.empty()) return true;
  data[random.below(std::ssize(data))] ^= static_cast<uint8_t>(1 + random.below(255));
  EXPECT(checksum(data.data(), std::ssize(data)) != sum);
  return true;
}

}  // namespace

const Target kChecksum{"checksum", valid, accepts};

}  // namespace ddp_compress::fuzz
