// Schemas and tensor checks. Every op checks what it was given here, then calls a raw-pointer
// kernel.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include "elias_fano_layout.h"
#include "kernels.h"
#include "schemas.h"
#include "tensors.h"

namespace ddp_compress {
namespace {

void check(const Tensor& t, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
  check_kind(t, name, dtype);
}

Tensor empty_cpu(int64_t size, ScalarType dtype) {
  const int64_t shape[] = {size};
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape, 1), dtype);
}

Tensor empty_rows(int64_t rows, int64_t size, ScalarType dtype) {
  const int64_t shape[] = {rows, size};
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape, 2), dtype);
}

template <typename T>
Tensor to_tensor(const std::vector<T>& data, ScalarType dtype) {
  Tensor t = empty_cpu(static_cast<int64_t>(data.size()), dtype);
  std::copy(data.begin(), data.end(), static_cast<T*>(t.mutable_data_ptr()));
  return t;
}

template <typename T>
Tensor scalar(T value, ScalarType dtype) {
  return to_tensor(std::vector<T>{value}, dtype);
}

using TopKResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

TopKResult topk_cpu(std::vector<Tensor> grads, std::vector<Tensor> residuals,
                    std::vector<Tensor> momenta, double momentum, const Tensor& bounds,
                    const Tensor& groups, const Tensor& ks, const Tensor& salts, bool heavier,
                    std::vector<Tensor> sums, std::vector<Tensor> next_momenta) {
  check_topk(grads, residuals, momenta, bounds, groups, ks, salts, sums, next_momenta, check);
  const ScalarType type = grads[0].scalar_type();
  const int64_t* k = read<int64_t>(ks);
  const int64_t slots = std::accumulate(k, k + ks.numel(), int64_t{0});
  Tensor indices = empty_cpu(slots, ScalarType::Int);
  Tensor values = empty_cpu(slots, memory_type(type));
  Tensor finite = scalar<bool>(true, ScalarType::Bool);
  Tensor counts = empty_cpu(ks.numel(), ScalarType::Long);
  Tensor means = empty_cpu(heavier ? ks.numel() : 0, ScalarType::Float);
  int64_t count = 0;
  dispatch(type, [&]<typename G, typename A>(G, A) {
    const auto chunks = chunks_of<G, A>(grads, residuals, momenta, sums, next_momenta);
    count = topk<G, A>(chunks, static_cast<A>(momentum), read<int64_t>(bounds),
                       read<int64_t>(groups), groups.numel(), k, ks.numel(),
                       salts.numel() ? read<int64_t>(salts) : nullptr, heavier,
                       {write<int32_t>(indices), write<A>(values), write<bool>(finite),
                        write<int64_t>(counts), write<float>(means)});
  });
  return {torch::stable::narrow(indices, 0, 0, count), torch::stable::narrow(values, 0, 0, count),
          finite, counts, means};
}

// Of `numel` values that come segment after segment.
void check_counts(const Tensor& counts, int64_t numel) {
  check(counts, "counts", ScalarType::Long);
  const int64_t* c = read<int64_t>(counts);
  int64_t total = 0;
  for (int64_t i = 0; i < counts.numel(); ++i) {
    STD_TORCH_CHECK(c[i] >= 0, "counts must not be negative");
    total += c[i];
  }
  STD_TORCH_CHECK(total == numel, "counts sum to ", total, ", expected ", numel);
}

// Calls `use` with a float or a double, as the values are.
template <typename Use>
void dispatch_wide(const Tensor& values, Use use) {
  if (values.scalar_type() == ScalarType::Double) {
    check(values, "values", ScalarType::Double);
    use(double{});
  } else {
    check(values, "values", ScalarType::Float);
    use(float{});
  }
}

Tensor segment_means_cpu(const Tensor& values, const Tensor& counts) {
  check_counts(counts, values.numel());
  Tensor means = empty_cpu(counts.numel(), ScalarType::Float);
  dispatch_wide(values, [&]<typename A>(A) {
    segment_means(read<A>(values), read<int64_t>(counts), counts.numel(), write<float>(means));
  });
  return means;
}

void accumulate_cpu(Tensor residual, Tensor grad, std::optional<Tensor> momentum, double mu,
                    Tensor next_residual, std::optional<Tensor> next_momentum) {
  check_accumulate(residual, grad, momentum, next_residual, next_momentum, check);
  dispatch(grad.scalar_type(), [&]<typename G, typename A>(G, A) {
    accumulate<G, A>(read<A>(residual), read<G>(grad), momentum ? read<A>(*momentum) : nullptr,
                     static_cast<A>(mu), write<A>(next_residual),
                     next_momentum ? write<A>(*next_momentum) : nullptr, grad.numel());
  });
}

// Without a branch in the loop: this runs over every rank's positions.
bool ascending(const int32_t* p, int64_t count) {
  bool ok = count == 0 || p[0] >= 0;
  for (int64_t i = 1; i < count; ++i) ok &= p[i - 1] < p[i];
  return ok;
}

void scatter_add_cpu(Tensor out, int64_t start, std::vector<Tensor> indices,
                     std::vector<Tensor> values, double scale, bool afresh) {
  check_scatter_add(out, indices, values, check);
  for (size_t i = 0; i < indices.size(); ++i)
    STD_TORCH_CHECK(ascending(read<int32_t>(indices[i]), indices[i].numel()), "indices[", i,
                    "] must ascend strictly from 0 or more");
  dispatch(out.scalar_type(), [&]<typename G, typename A>(G, A) {
    const auto ranks = entries_of<A>(indices, values);
    scatter_add<G, A>(write<G>(out), start, out.numel(), ranks, static_cast<A>(scale), afresh);
  });
}

void check_positions(const Tensor& indices, int64_t numel) {
  check(indices, "indices", ScalarType::Int);
  const int32_t* p = read<int32_t>(indices);
  const int64_t count = indices.numel();
  STD_TORCH_CHECK(ascending(p, count) && (count == 0 || p[count - 1] < numel),
                  "indices must ascend strictly within [0, ", numel, ")");
}

Tensor elias_fano_encode_cpu(const Tensor& indices, int64_t numel, int64_t k) {
  check_positions(indices, numel);
  STD_TORCH_CHECK(indices.numel() <= k && k <= numel, "indices has ", indices.numel(),
                  " entries and numel is ", numel, ", expected k = ", k, " between them");
  Tensor out = empty_cpu(elias_fano_size(numel, k), ScalarType::Byte);
  elias_fano_encode(read<int32_t>(indices), indices.numel(), numel, k, write<uint8_t>(out));
  return out;
}

std::tuple<Tensor, Tensor> elias_fano_decode_cpu(const Tensor& data, int64_t numel, int64_t k) {
  check(data, "data", ScalarType::Byte);
  check_slots(numel, k);
  std::vector<int32_t> indices(static_cast<size_t>(k));
  const int64_t count =
      elias_fano_decode(read<uint8_t>(data), data.numel(), numel, k, indices.data());
  indices.resize(static_cast<size_t>(std::max<int64_t>(count, 0)));
  const int64_t status = count < 0 ? count : elias_fano_size(numel, k);
  return {to_tensor(indices, ScalarType::Int), scalar<int64_t>(status, ScalarType::Long)};
}

std::tuple<Tensor, Tensor, Tensor> entries_decode_cpu(std::vector<Tensor> bodies,
                                                      const Tensor& group_ends, int64_t numel,
                                                      int64_t k, std::optional<ScalarType> dtype) {
  check_entries(bodies, group_ends, numel, k, check);
  const auto ranks = static_cast<int64_t>(bodies.size());
  const Groups groups{read<int32_t>(group_ends), group_ends.numel()};
  Tensor indices = empty_rows(ranks, k, ScalarType::Int);
  Tensor values = empty_rows(ranks, k, ScalarType::Float);
  Tensor words = empty_rows(ranks, 1 + groups.count, ScalarType::Long);
  dispatch_values(dtype, [&]<typename V>(V, bool means) {
    for (int64_t r = 0; r < ranks; ++r)
      entries_decode<V>(read<uint8_t>(bodies[r]), bodies[r].numel(), groups, numel, k, means,
                        write<int32_t>(indices) + r * k, write<float>(values) + r * k,
                        write<int64_t>(words) + r * (1 + groups.count));
  });
  return {indices, values, words};
}

Tensor golomb_encode_cpu(const Tensor& indices, const Tensor& bounds) {
  check_positions_of(bounds);
  check_positions(indices, read<int64_t>(bounds)[bounds.numel() - 1]);
  return to_tensor(golomb_encode(read<int32_t>(indices), indices.numel(), read<int64_t>(bounds),
                                 bounds.numel() - 1),
                   ScalarType::Byte);
}

std::tuple<Tensor, Tensor> golomb_decode_cpu(const Tensor& data, const Tensor& bounds,
                                             int64_t limit) {
  check(data, "data", ScalarType::Byte);
  check_positions_of(bounds);
  STD_TORCH_CHECK(limit >= 0, "limit must be 0 or more, got ", limit);
  // A position takes a bit at least.
  Tensor indices = empty_cpu(std::min(limit, 8 * data.numel()), ScalarType::Int);
  int64_t found = 0;
  const int64_t status = golomb_decode(read<uint8_t>(data), data.numel(), read<int64_t>(bounds),
                                       bounds.numel() - 1, limit, write<int32_t>(indices), &found);
  return {torch::stable::narrow(indices, 0, 0, status < 0 ? 0 : found),
          scalar<int64_t>(status, ScalarType::Long)};
}

std::tuple<Tensor, Tensor> tally_cpu(std::vector<Tensor> ballots) {
  std::vector<std::span<const int32_t>> lists;  // at least one: the dispatcher refuses none
  int64_t room = 1;
  for (size_t i = 0; i < ballots.size(); ++i) {
    check(ballots[i], "ballots", ScalarType::Int);
    lists.emplace_back(read<int32_t>(ballots[i]), ballots[i].numel());
    STD_TORCH_CHECK(ascending(lists[i].data(), std::ssize(lists[i])), "ballots[", i,
                    "] must ascend strictly from 0 or more");
    room += std::ssize(lists[i]);
  }
  Tensor positions = empty_cpu(room, ScalarType::Int), votes = empty_cpu(room, ScalarType::Int);
  const int64_t count = tally(std::move(lists), write<int32_t>(positions), write<int32_t>(votes));
  return {torch::stable::narrow(positions, 0, 0, count), torch::stable::narrow(votes, 0, 0, count)};
}

Tensor vote_keys_cpu(const Tensor& positions, const Tensor& votes, const Tensor& bounds,
                     const Tensor& salts, int64_t voters, bool random) {
  check_positions_of(bounds);
  const int64_t params = bounds.numel() - 1;
  check_positions(positions, read<int64_t>(bounds)[params]);
  check(votes, "votes", ScalarType::Int);
  check(salts, "salts", ScalarType::Long);
  STD_TORCH_CHECK(salts.numel() == params, "salts has ", salts.numel(),
                  " entries, expected one less than bounds, ", params);
  const int64_t count = positions.numel();
  STD_TORCH_CHECK(votes.numel() == count, "votes has ", votes.numel(), " entries, expected ",
                  count);
  STD_TORCH_CHECK(voters > 0 && voters <= INT32_MAX, "voters must lie within [1, 2**31), got ",
                  voters);
  const int32_t* v = read<int32_t>(votes);
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(v[i] >= 1 && v[i] <= voters, "votes[", i, "] is ", v[i],
                    ", expected 1 to voters = ", voters);
  Tensor keys = empty_cpu(count, ScalarType::Long);
  vote_keys(read<int32_t>(positions), v, count, read<int64_t>(bounds), read<int64_t>(salts), params,
            voters, random, write<int64_t>(keys));
  return keys;
}

Tensor largest_cpu(const Tensor& keys, int64_t k) {
  check(keys, "keys", ScalarType::Long);
  STD_TORCH_CHECK(k >= 0, "k must be 0 or more, got ", k);
  Tensor indices = empty_cpu(std::min(k, keys.numel()), ScalarType::Long);
  largest(read<int64_t>(keys), keys.numel(), k, write<int64_t>(indices));
  return indices;
}

// Calls f(A{}) for values of type float or double.
template <typename F>
void dispatch_float(ScalarType type, F f) {
  type == ScalarType::Double ? f(double{}) : f(float{});
}

void check_float(const Tensor& t, const char* name) {
  check(t, name, t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

// How many kernels there are.
int64_t check_kernels(const Tensor& bounds, const Tensor& numels, const Tensor& strides) {
  check_positions_of(bounds);
  check_table(numels, "numels");
  check_table(strides, "strides");
  const int64_t params = bounds.numel() - 1;
  check_numel(numels, "numels", params);
  check_numel(strides, "strides", params);
  int64_t kernels = 0;
  for (int64_t p = 0; p < params; ++p) {
    const int64_t numel = read<int64_t>(bounds)[p + 1] - read<int64_t>(bounds)[p];
    const int64_t m = read<int64_t>(numels)[p], stride = read<int64_t>(strides)[p];
    STD_TORCH_CHECK(m > 0 && stride > 0, "numels[", p, "] and strides[", p,
                    "] must be positive, got ", m, " and ", stride);
    STD_TORCH_CHECK(numel % m == 0 && numel / m % stride == 0 && (m > 1 || stride == 1),
                    "parameter ", p, " has ", numel, " elements, expected whole blocks of ", m,
                    " times ", stride);
    if (m > 1) kernels += numel / m;
  }
  return kernels;
}

KernelTables kernel_tables(const Tensor& bounds, const Tensor& numels, const Tensor& strides) {
  return {read<int64_t>(bounds), read<int64_t>(numels), read<int64_t>(strides), numels.numel()};
}

void check_kernel_values(const std::vector<Tensor>& values, const Tensor& bounds,
                         const Tensor& numels, const Tensor& strides, const Tensor& groups,
                         const Tensor& ks) {
  check_kernels(bounds, numels, strides);
  check_table(groups, "groups");
  check_table(ks, "ks");
  const int64_t params = numels.numel();
  check_numel(groups, "groups", params);
  const int64_t *g = read<int64_t>(groups), *k = read<int64_t>(ks), *b = read<int64_t>(bounds);
  for (int64_t p = 0; p < params; ++p)
    STD_TORCH_CHECK(g[p] >= -1 && g[p] < ks.numel(), "groups[", p, "] is ", g[p],
                    ", expected -1 or an index into ks of ", ks.numel(), " entries");
  STD_TORCH_CHECK(std::all_of(k, k + ks.numel(), [](int64_t each) { return each > 0; }),
                  "ks must be positive");
  check_float(values[0], "values");  // at least one: the dispatcher refuses an empty list
  int64_t total = 0;
  for (const Tensor& each : values) {
    check(each, "values", values[0].scalar_type());
    STD_TORCH_CHECK(std::binary_search(b, b + params + 1, total), "a parameter lies on both sides ",
                    "of ", total, ", where one of the values ends");
    total += each.numel();
  }
  STD_TORCH_CHECK(b[params] == total, "bounds must run from 0 to ", total);
}

template <typename A>
KernelValues<A> kernel_values(const std::vector<Tensor>& values, const Tensor& bounds,
                              const Tensor& numels, const Tensor& strides, const Tensor& groups,
                              const Tensor& ks) {
  std::vector<KernelChunk<A>> chunks;
  for (const Tensor& each : values) chunks.push_back({read<A>(each), each.numel()});
  return {chunks, kernel_tables(bounds, numels, strides), read<int64_t>(groups), read<int64_t>(ks),
          ks.numel()};
}

// Elements of these kernels, which ascend.
int64_t elements_of(const int32_t* kernels, int64_t count, const KernelTables& tables) {
  int64_t elements = 0, end = 0;
  const int32_t* const last = kernels + count;
  for (int64_t p = 0; p < tables.params; ++p) {
    const int64_t m = tables.numels[p];
    if (m > 1) end += (tables.bounds[p + 1] - tables.bounds[p]) / m;
    const int32_t* const next = std::lower_bound(kernels, last, end);
    elements += m * (next - kernels);
    kernels = next;
  }
  return elements;
}

Tensor largest_kernels_cpu(std::vector<Tensor> values, const Tensor& bounds, const Tensor& numels,
                           const Tensor& strides, const Tensor& groups, const Tensor& ks, int64_t m,
                           int64_t count) {
  check_kernel_values(values, bounds, numels, strides, groups, ks);
  STD_TORCH_CHECK(m > 1 && count >= 0, "m must be 2 or more and count 0 or more, got ", m, " and ",
                  count);
  const ScalarType type = values[0].scalar_type();
  Tensor rows;
  dispatch_float(type, [&]<typename A>(A) {
    const auto given = kernel_values<A>(values, bounds, numels, strides, groups, ks);
    const std::vector<A> found = largest_kernels(given, m, count);
    rows = empty_rows(static_cast<int64_t>(found.size()) / m, m, type);
    std::copy(found.begin(), found.end(), write<A>(rows));
  });
  return rows;
}

using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

FourTensors rank_kernels_cpu(std::vector<Tensor> values, const Tensor& bounds, const Tensor& numels,
                             const Tensor& strides, const Tensor& groups, const Tensor& ks,
                             std::vector<Tensor> patterns, const Tensor& prices,
                             const Tensor& single_prices) {
  check_kernel_values(values, bounds, numels, strides, groups, ks);
  const int64_t params = numels.numel();
  check(prices, "prices", ScalarType::Double);
  check(single_prices, "single_prices", ScalarType::Double);
  STD_TORCH_CHECK(prices.dim() == 2 && prices.size(0) == params && prices.size(1) % 2 == 1 &&
                      prices.size(1) > 1,
                  "prices must be of ", params, " parameters, an odd number of ways each");
  check_numel(single_prices, "single_prices", params);
  KernelPrices given{{}, prices.size(1) / 2, read<double>(prices), read<double>(single_prices)};
  for (const Tensor& each : patterns) {
    check(each, "patterns", ScalarType::Double);
    STD_TORCH_CHECK(each.dim() == 2 && each.size(0) == given.patterns,
                    "patterns must hold matrices of ", given.patterns, " rows");
    given.sizes.push_back({each.size(1), read<double>(each)});
    for (int64_t i = 0; i < each.numel(); ++i)
      STD_TORCH_CHECK(std::abs(read<double>(each)[i]) == 1, "patterns must hold 1 and -1");
  }
  for (const Tensor* each : {&prices, &single_prices})
    for (int64_t i = 0; i < each->numel(); ++i)
      STD_TORCH_CHECK(read<double>(*each)[i] > 0, "prices must be positive");
  for (int64_t p = 0; p < params; ++p) {
    const int64_t m = read<int64_t>(numels)[p], group = read<int64_t>(groups)[p];
    const bool fits = m > 1 && group >= 0 && m <= read<int64_t>(ks)[group];
    STD_TORCH_CHECK(!fits || std::any_of(given.sizes.begin(), given.sizes.end(),
                                         [m](const auto& each) { return each.m == m; }),
                    "patterns holds none for kernels of ", m, " elements");
  }
  const ScalarType type = values[0].scalar_type();
  std::optional<FourTensors> result;
  dispatch_float(type, [&]<typename A>(A) {
    const RankedKernels<A> found =
        rank_kernels(kernel_values<A>(values, bounds, numels, strides, groups, ks), given);
    result = {to_tensor(found.kernels, ScalarType::Int), to_tensor(found.ways, ScalarType::Int),
              to_tensor(found.values, type), to_tensor(found.singles, ScalarType::Int)};
  });
  return *result;
}

FourTensors split_kernels_cpu(const Tensor& positions, const Tensor& values, const Tensor& bounds,
                              const Tensor& numels, const Tensor& strides) {
  check_kernels(bounds, numels, strides);
  check_positions(positions, read<int64_t>(bounds)[numels.numel()]);
  check_float(values, "values");
  check_numel(values, "values", positions.numel());
  std::optional<FourTensors> result;
  dispatch_float(values.scalar_type(), [&]<typename A>(A) {
    const SplitKernels<A> found =
        split_kernels<A>({read<int32_t>(positions), read<A>(values), positions.numel()},
                         kernel_tables(bounds, numels, strides));
    result = {to_tensor(found.kernels, ScalarType::Int),
              to_tensor(found.of_kernels, values.scalar_type()),
              to_tensor(found.singles, ScalarType::Int),
              to_tensor(found.of_singles, values.scalar_type())};
  });
  return *result;
}

std::tuple<Tensor, Tensor> join_kernels_cpu(std::vector<Tensor> kernels,
                                            std::vector<Tensor> of_kernels, const Tensor& singles,
                                            const Tensor& of_singles, const Tensor& bounds,
                                            const Tensor& numels, const Tensor& strides) {
  const int64_t all = check_kernels(bounds, numels, strides);
  const ScalarType type = of_singles.scalar_type();
  check_float(of_singles, "of_singles");
  check_positions(singles, read<int64_t>(bounds)[numels.numel()]);
  check_numel(of_singles, "of_singles", singles.numel());
  STD_TORCH_CHECK(kernels.size() == of_kernels.size(), "of_kernels has ", of_kernels.size(),
                  " tensors, expected ", kernels.size());
  const KernelTables tables = kernel_tables(bounds, numels, strides);
  int64_t count = singles.numel();
  for (size_t i = 0; i < kernels.size(); ++i) {
    check(kernels[i], "kernels", ScalarType::Int);
    const int32_t* each = read<int32_t>(kernels[i]);
    const int64_t n = kernels[i].numel();
    STD_TORCH_CHECK(ascending(each, n) && (n == 0 || each[n - 1] < all), "kernels[", i,
                    "] must ascend strictly within [0, ", all, ")");
    check(of_kernels[i], "of_kernels", type);
    check_numel(of_kernels[i], "of_kernels", elements_of(each, n, tables));
    count += of_kernels[i].numel();
  }
  Tensor indices = empty_cpu(count, ScalarType::Int);
  Tensor values = empty_cpu(count, type);
  dispatch_float(type, [&]<typename A>(A) {
    std::vector<KernelList<A>> lists;
    for (size_t i = 0; i < kernels.size(); ++i)
      lists.push_back({read<int32_t>(kernels[i]), read<A>(of_kernels[i]), kernels[i].numel()});
    join_kernels<A>(lists, {read<int32_t>(singles), read<A>(of_singles), singles.numel()}, tables,
                    write<int32_t>(indices), write<A>(values));
  });
  return {indices, values};
}

// 0 of none. Without a call in the loop: this runs over every rank's symbols.
int64_t largest_of(const Tensor& bytes) {
  const uint8_t* b = read<uint8_t>(bytes);
  const int64_t count = bytes.numel();
  uint8_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, b[i]);
  return largest;
}

void check_alphabet(int64_t alphabet) {
  STD_TORCH_CHECK(alphabet >= 2 && alphabet <= 65, "alphabet must lie within [2, 65], got ",
                  alphabet);
}

Tensor rans_encode_cpu(const Tensor& symbols, int64_t alphabet) {
  check(symbols, "symbols", ScalarType::Byte);
  check_alphabet(alphabet);
  const int64_t largest = largest_of(symbols);
  STD_TORCH_CHECK(largest < alphabet, "symbols must lie below the alphabet, ", alphabet, ", got ",
                  largest);
  return to_tensor(rans_encode(read<uint8_t>(symbols), symbols.numel(), static_cast<int>(alphabet)),
                   ScalarType::Byte);
}

std::tuple<Tensor, Tensor> rans_decode_cpu(std::vector<Tensor> messages, int64_t count,
                                           int64_t alphabet) {
  check_alphabet(alphabet);
  STD_TORCH_CHECK(count >= 0, "count must be 0 or more, got ", count);
  std::vector<std::span<const uint8_t>> bytes;
  for (const Tensor& message : messages) {
    check(message, "messages", ScalarType::Byte);
    bytes.emplace_back(read<uint8_t>(message), message.numel());
  }
  const int64_t ranks = std::ssize(bytes);
  Tensor symbols = empty_rows(ranks, count, ScalarType::Byte);
  Tensor status = empty_cpu(ranks, ScalarType::Long);
  uint8_t* const rows = write<uint8_t>(symbols);
  int64_t* const s = write<int64_t>(status);
  rans_decode(bytes, count, static_cast<int>(alphabet), rows, s);
  for (int64_t r = 0; r < ranks; ++r)
    if (s[r] < 0) std::fill_n(rows + r * count, count, uint8_t{0});
  return {symbols, status};
}

Tensor cell_numbers_cpu(const Tensor& values, const Tensor& counts, const Tensor& edges) {
  check_counts(counts, values.numel());
  check(edges, "edges", ScalarType::Double);
  const int64_t groups = counts.numel();
  STD_TORCH_CHECK(edges.dim() == 2 && edges.size(0) == groups, "edges must have a row for each of ",
                  groups, " groups");
  const int64_t edge_count = edges.size(1);
  STD_TORCH_CHECK(2 * (edge_count + 1) < kMostCells, "edges has ", edge_count,
                  " columns, expected up to 31");
  Tensor cells = empty_cpu(values.numel(), ScalarType::Byte);
  dispatch_wide(values, [&]<typename A>(A) {
    cell_numbers(read<A>(values), read<int64_t>(counts), groups, read<double>(edges), edge_count,
                 write<uint8_t>(cells));
  });
  return cells;
}

void check_cells(const Tensor& cells, const Tensor& counts, int64_t width) {
  check(cells, "cells", ScalarType::Byte);
  check_counts(counts, cells.numel());
  const int64_t largest = largest_of(cells);
  STD_TORCH_CHECK(cells.numel() == 0 || largest < width, "cells must lie below the width, ", width,
                  ", got ", largest);
}

Tensor cell_means_cpu(const Tensor& values, const Tensor& cells, const Tensor& counts,
                      int64_t width) {
  STD_TORCH_CHECK(width >= 1 && width <= kMostCells, "width must lie within [1, ", kMostCells,
                  "], got ", width);
  check_cells(cells, counts, width);
  STD_TORCH_CHECK(values.numel() == cells.numel(), "values has ", values.numel(),
                  " elements, expected one for each of ", cells.numel(), " cells");
  Tensor means = empty_rows(counts.numel(), width, ScalarType::Float);
  dispatch_wide(values, [&]<typename A>(A) {
    cell_means(read<A>(values), read<uint8_t>(cells), read<int64_t>(counts), counts.numel(),
               static_cast<int>(width), write<float>(means));
  });
  return means;
}

Tensor cell_values_cpu(const Tensor& table, const Tensor& cells, const Tensor& counts) {
  check(table, "table", ScalarType::Float);
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == counts.numel(),
                  "table must have a row for each of ", counts.numel(), " groups");
  check_cells(cells, counts, table.size(1));
  Tensor values = empty_cpu(cells.numel(), ScalarType::Float);
  cell_values(read<float>(table), read<uint8_t>(cells), read<int64_t>(counts), counts.numel(),
              static_cast<int>(table.size(1)), write<float>(values));
  return values;
}

std::tuple<Tensor, Tensor> sign_encode_cpu(const Tensor& values, const Tensor& bounds,
                                           int64_t block) {
  check(values, "values", values.scalar_type());
  const SignSizes sizes = sign_sizes(bounds, block);
  STD_TORCH_CHECK(values.numel() == sizes.numel, "values has ", values.numel(),
                  " elements, expected the last of bounds, ", sizes.numel);
  Tensor bits = empty_cpu(sizes.bits, ScalarType::Byte);
  Tensor scales = empty_cpu(sizes.scales, ScalarType::Float);
  dispatch_wide(values, [&]<typename A>(A) {
    sign_encode(read<A>(values), read<int64_t>(bounds), bounds.numel() - 1, block,
                write<uint8_t>(bits), write<float>(scales));
  });
  return {bits, scales};
}

Tensor sign_decode_cpu(const Tensor& bits, const Tensor& scales, const Tensor& bounds,
                       int64_t block) {
  check(bits, "bits", ScalarType::Byte);
  check(scales, "scales", ScalarType::Float);
  const SignSizes sizes = sign_sizes(bounds, block);
  STD_TORCH_CHECK(bits.numel() == sizes.bits, "bits has ", bits.numel(), " bytes, expected ",
                  sizes.bits);
  STD_TORCH_CHECK(scales.numel() == sizes.scales, "scales has ", scales.numel(),
                  " entries, expected ", sizes.scales);
  Tensor values = empty_cpu(sizes.numel, ScalarType::Float);
  sign_decode(read<uint8_t>(bits), read<float>(scales), read<int64_t>(bounds), bounds.numel() - 1,
              block, write<float>(values));
  return values;
}

void sign_add_cpu(Tensor out, std::vector<Tensor> bits, std::vector<Tensor> scales,
                  const Tensor& bounds, int64_t block, double scale, bool afresh) {
  check_sign_add(out, bits, scales, bounds, block, check);
  dispatch(out.scalar_type(), [&]<typename G, typename A>(G, A) {
    sign_add<G, A>(write<G>(out), sign_lists(bits, scales), read<int64_t>(bounds),
                   bounds.numel() - 1, block, static_cast<A>(scale), afresh);
  });
}

Tensor rotated_encode_cpu(const Tensor& values, const Tensor& sizes, const Tensor& signs,
                          const Tensor& noises, const Tensor& free, const Tensor& sent,
                          bool unbiased, int64_t iterations, int64_t bits) {
  check(values, "values", ScalarType::Float);
  const Rotation rotation = rotation_of(sizes, signs, free, sent, bits);
  const Drawn drawn = drawn_of(sizes, noises, unbiased, iterations);
  const Cut cut(rotation);
  check_numel(values, "values", cut.values);
  Tensor data = empty_cpu(cut.bytes, ScalarType::Byte);
  rotated_encode(read<float>(values), rotation, cut, drawn, write<uint8_t>(data));
  return data;
}

Tensor rotated_decode_cpu(const Tensor& data, const Tensor& sizes, const Tensor& signs,
                          const Tensor& free, const Tensor& sent, int64_t bits) {
  check(data, "data", ScalarType::Byte);
  const Rotation rotation = rotation_of(sizes, signs, free, sent, bits);
  const Cut cut(rotation);
  check_numel(data, "data", cut.bytes);
  Tensor values = empty_cpu(cut.values, ScalarType::Float);
  rotated_decode(read<uint8_t>(data), rotation, cut, write<float>(values));
  return values;
}

void rotated_add_cpu(Tensor out, int64_t first, std::vector<Tensor> data, const Tensor& sizes,
                     const Tensor& signs, const Tensor& free, const Tensor& sent, int64_t bits,
                     double limit, double scale, bool afresh) {
  const Rotation rotation = rotation_of(sizes, signs, free, sent, bits);
  const Cut cut(rotation);
  check_rotated_add(out, first, data, sizes, cut, check);
  dispatch(out.scalar_type(), [&]<typename G, typename A>(G, A) {
    const Sum<G, A> sum{write<G>(out),         first, out.numel(), static_cast<float>(limit),
                        static_cast<A>(scale), afresh};
    rotated_add<G, A>(bytes_of(data), rotation, cut, sum);
  });
}

}  // namespace
}  // namespace ddp_compress

STABLE_TORCH_LIBRARY(ddp_compress, m) { ddp_compress::define_ops(m); }

STABLE_TORCH_LIBRARY_IMPL(ddp_compress, CPU, m) {
  using namespace ddp_compress;
  m.impl("topk", TORCH_BOX(&topk_cpu));
  m.impl("segment_means", TORCH_BOX(&segment_means_cpu));
  m.impl("accumulate", TORCH_BOX(&accumulate_cpu));
  m.impl("scatter_add", TORCH_BOX(&scatter_add_cpu));
  m.impl("elias_fano_encode", TORCH_BOX(&elias_fano_encode_cpu));
  m.impl("elias_fano_decode", TORCH_BOX(&elias_fano_decode_cpu));
  m.impl("entries_decode", TORCH_BOX(&entries_decode_cpu));
  m.impl("golomb_encode", TORCH_BOX(&golomb_encode_cpu));
  m.impl("golomb_decode", TORCH_BOX(&golomb_decode_cpu));
  m.impl("tally", TORCH_BOX(&tally_cpu));
  m.impl("vote_keys", TORCH_BOX(&vote_keys_cpu));
  m.impl("largest", TORCH_BOX(&largest_cpu));
  m.impl("largest_kernels", TORCH_BOX(&largest_kernels_cpu));
  m.impl("rank_kernels", TORCH_BOX(&rank_kernels_cpu));
  m.impl("split_kernels", TORCH_BOX(&split_kernels_cpu));
  m.impl("join_kernels", TORCH_BOX(&join_kernels_cpu));
  m.impl("rans_encode", TORCH_BOX(&rans_encode_cpu));
  m.impl("rans_decode", TORCH_BOX(&rans_decode_cpu));
  m.impl("cell_numbers", TORCH_BOX(&cell_numbers_cpu));
  m.impl("cell_means", TORCH_BOX(&cell_means_cpu));
  m.impl("cell_values", TORCH_BOX(&cell_values_cpu));
  m.impl("sign_encode", TORCH_BOX(&sign_encode_cpu));
  m.impl("sign_decode", TORCH_BOX(&sign_decode_cpu));
  m.impl("sign_add", TORCH_BOX(&sign_add_cpu));
  m.impl("rotated_encode", TORCH_BOX(&rotated_encode_cpu));
  m.impl("rotated_decode", TORCH_BOX(&rotated_decode_cpu));
  m.impl("rotated_add", TORCH_BOX(&rotated_add_cpu));
}
