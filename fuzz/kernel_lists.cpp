#include "../csrc/kernels.h"
#include "gradients.h"
#include "kernel_tables.h"

namespace ddp_compress::fuzz {
namespace {

template <typename A>
void run(Random& random) {
  const KernelShape shape(random);
  const KernelTables tables = shape.tables();
  const auto positions = random.positions(shape.numel(), random.size(shape.numel()));
  const auto values = numbers<A>(random, std::ssize(positions));
  const Entries<A> entries{positions.data(), values.data(), std::ssize(positions)};
  const SplitKernels<A> found = split_kernels(entries, tables);
  EXPECT(ascend_within(found.kernels, shape.kernels()));
  EXPECT(ascend_within(found.singles, shape.numel()));
  EXPECT(found.singles.size() == found.of_singles.size());

  std::vector<int32_t> indices(positions.size());
  std::vector<A> again(positions.size());
  EXPECT(found.of_kernels.size() + found.singles.size() == positions.size());
  const KernelList<A> list{found.kernels.data(), found.of_kernels.data(),
                           std::ssize(found.kernels)};
  join_kernels<A>({list},
                  {found.singles.data(), found.of_singles.data(), std::ssize(found.singles)},
                  tables, indices.data(), again.data());
  EXPECT(indices == positions && same_bits(again, values));

  // What two lists say of the same kernels.
  indices.resize(2 * found.of_kernels.size());
  again.resize(indices.size());
  join_kernels<A>({list, list}, {nullptr, nullptr, 0}, tables, indices.data(), again.data());
  for (size_t i = 0; i < indices.size(); i += 2) EXPECT(indices[i] == indices[i + 1]);
}

bool accepts(Input in) {
  Random random(in.take<uint64_t>());
  random.one_in(2) ? run<float>(random) : run<double>(random);
  return true;
}

}  // namespace

const Target kKernelLists{"kernel_lists", seed, accepts};

}  // namespace ddp_compress::fuzz
