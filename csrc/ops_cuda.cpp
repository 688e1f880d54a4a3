// Tensor checks of the CUDA ops, which then call a raw-pointer kernel of csrc/cuda.
//
// What is in a tensor on the device is not looked at here: that would wait for the device. Kernels
// stay within their memory whatever they read. An op that returns a list of positions gives it a
// slot for every one there may be; see cuda/kernels.h.
//
// tests/emulation builds this file too, as ops of another name on CPU tensors.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "cuda/kernels.h"
#include "elias_fano_layout.h"
#include "kernels.h"
#include "schemas.h"
#include "tensors.h"

#ifndef DDP_COMPRESS_EMULATED
// Declared by torch where it was built with CUDA; this file compiles against any.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace ddp_compress {
namespace {

Tensor empty_like_of(const Tensor& like, int64_t size, ScalarType dtype) {
  const int64_t shape[] = {size};
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape, 1), dtype);
}

Tensor empty_rows_like(const Tensor& like, int64_t rows, int64_t size, ScalarType dtype) {
  const int64_t shape[] = {rows, size};
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape, 2), dtype);
}

#ifdef DDP_COMPRESS_EMULATED
bool on_device(const Tensor& t) { return t.is_cpu(); }
struct Guard {
  explicit Guard(const Tensor&) {}
  void* stream() const { return nullptr; }
};
#else
bool on_device(const Tensor& t) { return t.is_cuda(); }
struct Guard {
  explicit Guard(const Tensor& t) : index(t.get_device_index()), device(index) {}
  void* stream() const {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &stream) == AOTI_TORCH_SUCCESS,
                    "CUDA device ", index, " has no current stream");
    return stream;
  }
  int32_t index;
  torch::stable::accelerator::DeviceGuard device;
};
#endif

// The device of a tensor, as kernels see it, for the time of one op.
class Here {
 public:
  explicit Here(const Tensor& like)
      : guard_(like), device_{guard_.stream(), [this, like](int64_t bytes) {
                                scratch_.push_back(empty_like_of(like, bytes, ScalarType::Byte));
                                return scratch_.back().mutable_data_ptr();
                              }} {}
  Here(const Here&) = delete;
  operator const cuda::Device&() const { return device_; }

 private:
  Guard guard_;
  std::vector<Tensor> scratch_;
  cuda::Device device_;
};

void check(const Tensor& t, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(on_device(t), name, " must be on a CUDA device");
  check_kind(t, name, dtype);
}

void check_float(const Tensor& t, const char* name) {
  check(t, name, t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

// One op runs on one device.
template <typename... Others>
void check_beside(const Tensor& first, const Others&... others) {
  const auto check_one = [&](const Tensor& other) {
    STD_TORCH_CHECK(other.get_device_index() == first.get_device_index(),
                    "tensors are on CUDA devices ", first.get_device_index(), " and ",
                    other.get_device_index(), ", expected one");
  };
  (check_one(others), ...);
}

// Calls f(A{}) for values of type float or double.
template <typename F>
void dispatch_float(const Tensor& values, F f) {
  values.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> topk_cuda(
    std::vector<Tensor> grads, std::vector<Tensor> residuals, std::vector<Tensor> momenta,
    double momentum, const Tensor& bounds, const Tensor& groups, const Tensor& ks,
    const Tensor& salts, bool heavier, std::vector<Tensor> sums, std::vector<Tensor> next_momenta) {
  check_topk(grads, residuals, momenta, bounds, groups, ks, salts, sums, next_momenta, check);
  const ScalarType type = grads[0].scalar_type();
  const int64_t* k = read<int64_t>(ks);
  const int64_t slots = std::accumulate(k, k + ks.numel(), int64_t{0});
  for (const auto* list : {&grads, &residuals, &momenta, &sums, &next_momenta})
    for (const Tensor& each : *list) check_beside(grads[0], each);
  const Here here(grads[0]);
  Tensor indices = empty_like_of(grads[0], slots, ScalarType::Int);
  Tensor values = empty_like_of(grads[0], slots, memory_type(type));
  Tensor finite = empty_like_of(grads[0], 1, ScalarType::Bool);
  Tensor counts = empty_like_of(grads[0], ks.numel(), ScalarType::Long);
  Tensor means = empty_like_of(grads[0], heavier ? ks.numel() : 0, ScalarType::Float);
  dispatch(type, [&]<typename G, typename A>(G, A) {
    const auto chunks = chunks_of<G, A>(grads, residuals, momenta, sums, next_momenta);
    cuda::topk<G, A>(here, chunks, static_cast<A>(momentum), read<int64_t>(bounds),
                     read<int64_t>(groups), groups.numel(), k, ks.numel(),
                     salts.numel() ? read<int64_t>(salts) : nullptr, heavier,
                     {write<int32_t>(indices), write<A>(values), write<bool>(finite),
                      write<int64_t>(counts), heavier ? write<float>(means) : nullptr});
  });
  return {indices, values, finite, counts, means};
}

Tensor segment_means_cuda(const Tensor& values, const Tensor& counts) {
  check(counts, "counts", ScalarType::Long);
  check_float(values, "values");
  check_beside(values, counts);
  const Here here(values);
  Tensor means = empty_like_of(values, counts.numel(), ScalarType::Float);
  dispatch_float(values, [&]<typename A>(A) {
    cuda::segment_means(here, read<A>(values), values.numel(), read<int64_t>(counts),
                        counts.numel(), write<float>(means));
  });
  return means;
}

void accumulate_cuda(Tensor residual, Tensor grad, std::optional<Tensor> momentum, double mu,
                     Tensor next_residual, std::optional<Tensor> next_momentum) {
  check_accumulate(residual, grad, momentum, next_residual, next_momentum, check);
  check_beside(grad, residual, momentum.value_or(grad), next_residual,
               next_momentum.value_or(grad));
  const Here here(grad);
  dispatch(grad.scalar_type(), [&]<typename G, typename A>(G, A) {
    cuda::accumulate<G, A>(here, read<A>(residual), read<G>(grad),
                           momentum ? read<A>(*momentum) : nullptr, static_cast<A>(mu),
                           write<A>(next_residual),
                           next_momentum ? write<A>(*next_momentum) : nullptr, grad.numel());
  });
}

void scatter_add_cuda(Tensor out, int64_t start, std::vector<Tensor> indices,
                      std::vector<Tensor> values, double scale, bool afresh) {
  check_scatter_add(out, indices, values, check);
  for (size_t i = 0; i < indices.size(); ++i) check_beside(out, indices[i], values[i]);
  const Here here(out);
  dispatch(out.scalar_type(), [&]<typename G, typename A>(G, A) {
    const auto ranks = entries_of<A>(indices, values);
    cuda::scatter_add<G, A>(here, write<G>(out), start, out.numel(), ranks, static_cast<A>(scale),
                            afresh);
  });
}

Tensor elias_fano_encode_cuda(const Tensor& indices, int64_t numel, int64_t k) {
  check(indices, "indices", ScalarType::Int);
  check_slots(numel, k);
  const Here here(indices);
  Tensor out = empty_like_of(indices, elias_fano_size(numel, k), ScalarType::Byte);
  cuda::elias_fano_encode(here, read<int32_t>(indices), indices.numel(), numel, k,
                          write<uint8_t>(out));
  return out;
}

std::tuple<Tensor, Tensor> elias_fano_decode_cuda(const Tensor& data, int64_t numel, int64_t k) {
  check(data, "data", ScalarType::Byte);
  check_slots(numel, k);
  const Here here(data);
  Tensor indices = empty_like_of(data, k, ScalarType::Int);
  Tensor status = empty_like_of(data, 1, ScalarType::Long);
  cuda::elias_fano_decode(here, {{read<uint8_t>(data), data.numel()}}, numel, k,
                          write<int32_t>(indices), write<int64_t>(status), 1);
  return {indices, status};
}

std::tuple<Tensor, Tensor, Tensor> entries_decode_cuda(std::vector<Tensor> bodies,
                                                       const Tensor& group_ends, int64_t numel,
                                                       int64_t k, std::optional<ScalarType> dtype) {
  check_entries(bodies, group_ends, numel, k, check);
  std::vector<cuda::Bytes> ranks;
  for (const Tensor& body : bodies) {
    check_beside(group_ends, body);
    ranks.push_back({read<uint8_t>(body), body.numel()});
  }
  const auto count = static_cast<int64_t>(ranks.size());
  const Groups groups{read<int32_t>(group_ends), group_ends.numel()};
  const Here here(group_ends);
  Tensor indices = empty_rows_like(group_ends, count, k, ScalarType::Int);
  Tensor values = empty_rows_like(group_ends, count, k, ScalarType::Float);
  Tensor words = empty_rows_like(group_ends, count, 1 + groups.count, ScalarType::Long);
  dispatch_values(dtype, [&]<typename V>(V, bool means) {
    cuda::entries_decode<V>(here, ranks, groups, numel, k, means, write<int32_t>(indices),
                            write<float>(values), write<int64_t>(words));
  });
  return {indices, values, words};
}

Tensor golomb_encode_cuda(const Tensor& indices, const Tensor& bounds) {
  check_positions_of(bounds);
  check(indices, "indices", ScalarType::Int);
  const Here here(indices);
  Tensor out = indices;
  cuda::golomb_encode(here, read<int32_t>(indices), indices.numel(), read<int64_t>(bounds),
                      bounds.numel() - 1, [&](int64_t bytes) {
                        out = empty_like_of(indices, bytes, ScalarType::Byte);
                        return write<uint8_t>(out);
                      });
  return out;
}

std::tuple<Tensor, Tensor> tally_cuda(std::vector<Tensor> ballots) {
  std::vector<cuda::Ballot> lists;  // at least one: the dispatcher refuses an empty list
  int64_t slots = 0;
  for (const Tensor& ballot : ballots) {
    check(ballot, "ballots", ScalarType::Int);
    check_beside(ballots[0], ballot);
    lists.push_back({read<int32_t>(ballot), ballot.numel()});
    slots += ballot.numel();
  }
  const Here here(ballots[0]);
  Tensor positions = empty_like_of(ballots[0], slots, ScalarType::Int);
  Tensor votes = empty_like_of(ballots[0], slots, ScalarType::Int);
  cuda::tally(here, lists, write<int32_t>(positions), write<int32_t>(votes));
  return {positions, votes};
}

Tensor vote_keys_cuda(const Tensor& positions, const Tensor& votes, const Tensor& bounds,
                      const Tensor& salts, int64_t voters, bool random) {
  check_positions_of(bounds);
  check_table(salts, "salts");
  check(positions, "positions", ScalarType::Int);
  check(votes, "votes", ScalarType::Int);
  STD_TORCH_CHECK(salts.numel() == bounds.numel() - 1, "salts has ", salts.numel(),
                  " entries, expected one less than bounds, ", bounds.numel() - 1);
  STD_TORCH_CHECK(votes.numel() == positions.numel(), "votes has ", votes.numel(),
                  " entries, expected ", positions.numel());
  STD_TORCH_CHECK(voters > 0 && voters <= INT32_MAX, "voters must lie within [1, 2**31), got ",
                  voters);
  check_beside(positions, votes);
  const Here here(positions);
  Tensor keys = empty_like_of(positions, positions.numel(), ScalarType::Long);
  cuda::vote_keys(here, read<int32_t>(positions), read<int32_t>(votes), positions.numel(),
                  read<int64_t>(bounds), read<int64_t>(salts), salts.numel(), voters, random,
                  write<int64_t>(keys));
  return keys;
}

Tensor largest_cuda(const Tensor& keys, int64_t k) {
  check(keys, "keys", ScalarType::Long);
  STD_TORCH_CHECK(k >= 0, "k must be 0 or more, got ", k);
  const Here here(keys);
  Tensor indices = empty_like_of(keys, std::min(k, keys.numel()), ScalarType::Long);
  cuda::largest(here, read<int64_t>(keys), keys.numel(), k, write<int64_t>(indices));
  return indices;
}

std::tuple<Tensor, Tensor> sign_encode_cuda(const Tensor& values, const Tensor& bounds,
                                            int64_t block) {
  check_float(values, "values");
  const SignSizes sizes = sign_sizes(bounds, block);
  STD_TORCH_CHECK(values.numel() == sizes.numel, "values has ", values.numel(),
                  " elements, expected the last of bounds, ", sizes.numel);
  const Here here(values);
  Tensor bits = empty_like_of(values, sizes.bits, ScalarType::Byte);
  Tensor scales = empty_like_of(values, sizes.scales, ScalarType::Float);
  dispatch_float(values, [&]<typename A>(A) {
    cuda::sign_encode(here, read<A>(values), read<int64_t>(bounds), bounds.numel() - 1, block,
                      write<uint8_t>(bits), write<float>(scales));
  });
  return {bits, scales};
}

Tensor sign_decode_cuda(const Tensor& bits, const Tensor& scales, const Tensor& bounds,
                        int64_t block) {
  check(bits, "bits", ScalarType::Byte);
  check(scales, "scales", ScalarType::Float);
  const SignSizes sizes = sign_sizes(bounds, block);
  STD_TORCH_CHECK(bits.numel() == sizes.bits, "bits has ", bits.numel(), " bytes, expected ",
                  sizes.bits);
  STD_TORCH_CHECK(scales.numel() == sizes.scales, "scales has ", scales.numel(),
                  " entries, expected ", sizes.scales);
  check_beside(bits, scales);
  const Here here(bits);
  Tensor values = empty_like_of(bits, sizes.numel, ScalarType::Float);
  cuda::sign_decode(here, read<uint8_t>(bits), read<float>(scales), read<int64_t>(bounds),
                    bounds.numel() - 1, block, write<float>(values));
  return values;
}

void sign_add_cuda(Tensor out, std::vector<Tensor> bits, std::vector<Tensor> scales,
                   const Tensor& bounds, int64_t block, double scale, bool afresh) {
  check_sign_add(out, bits, scales, bounds, block, check);
  for (size_t i = 0; i < bits.size(); ++i) check_beside(out, bits[i], scales[i]);
  const Here here(out);
  dispatch(out.scalar_type(), [&]<typename G, typename A>(G, A) {
    cuda::sign_add<G, A>(here, write<G>(out), sign_lists(bits, scales), read<int64_t>(bounds),
                         bounds.numel() - 1, block, static_cast<A>(scale), afresh);
  });
}

Tensor rotated_encode_cuda(const Tensor& values, const Tensor& sizes, const Tensor& signs,
                           const Tensor& noises, const Tensor& free, const Tensor& sent,
                           bool unbiased, int64_t iterations, int64_t bits) {
  check(values, "values", ScalarType::Float);
  const Rotation rotation = rotation_of(sizes, signs, free, sent, bits);
  const Drawn drawn = drawn_of(sizes, noises, unbiased, iterations);
  const Cut cut(rotation);
  check_numel(values, "values", cut.values);
  const Here here(values);
  Tensor data = empty_like_of(values, cut.bytes, ScalarType::Byte);
  cuda::rotated_encode(here, read<float>(values), rotation, cut, drawn, write<uint8_t>(data));
  return data;
}

Tensor rotated_decode_cuda(const Tensor& data, const Tensor& sizes, const Tensor& signs,
                           const Tensor& free, const Tensor& sent, int64_t bits) {
  check(data, "data", ScalarType::Byte);
  const Rotation rotation = rotation_of(sizes, signs, free, sent, bits);
  const Cut cut(rotation);
  check_numel(data, "data", cut.bytes);
  const Here here(data);
  Tensor values = empty_like_of(data, cut.values, ScalarType::Float);
  cuda::rotated_decode(here, read<uint8_t>(data), rotation, cut, write<float>(values));
  return values;
}

void rotated_add_cuda(Tensor out, int64_t first, std::vector<Tensor> data, const Tensor& sizes,
                      const Tensor& signs, const Tensor& free, const Tensor& sent, int64_t bits,
                      double limit, double scale, bool afresh) {
  const Rotation rotation = rotation_of(sizes, signs, free, sent, bits);
  const Cut cut(rotation);
  check_rotated_add(out, first, data, sizes, cut, check);
  for (const Tensor& each : data) check_beside(out, each);
  const Here here(out);
  dispatch(out.scalar_type(), [&]<typename G, typename A>(G, A) {
    const Sum<G, A> sum{write<G>(out),         first, out.numel(), static_cast<float>(limit),
                        static_cast<A>(scale), afresh};
    cuda::rotated_add<G, A>(here, bytes_of(data), rotation, cut, sum);
  });
}

// rANS is missing: a state that runs through all symbols is no work for a GPU. Golomb-Rice codes
// are decoded on the host, too: none says where the next one starts.
template <typename Library>
void implement_ops(Library& m) {
  m.impl("topk", TORCH_BOX(&topk_cuda));
  m.impl("segment_means", TORCH_BOX(&segment_means_cuda));
  m.impl("accumulate", TORCH_BOX(&accumulate_cuda));
  m.impl("scatter_add", TORCH_BOX(&scatter_add_cuda));
  m.impl("elias_fano_encode", TORCH_BOX(&elias_fano_encode_cuda));
  m.impl("elias_fano_decode", TORCH_BOX(&elias_fano_decode_cuda));
  m.impl("entries_decode", TORCH_BOX(&entries_decode_cuda));
  m.impl("golomb_encode", TORCH_BOX(&golomb_encode_cuda));
  m.impl("tally", TORCH_BOX(&tally_cuda));
  m.impl("vote_keys", TORCH_BOX(&vote_keys_cuda));
  m.impl("largest", TORCH_BOX(&largest_cuda));
  m.impl("sign_encode", TORCH_BOX(&sign_encode_cuda));
  m.impl("sign_decode", TORCH_BOX(&sign_decode_cuda));
  m.impl("sign_add", TORCH_BOX(&sign_add_cuda));
  m.impl("rotated_encode", TORCH_BOX(&rotated_encode_cuda));
  m.impl("rotated_decode", TORCH_BOX(&rotated_decode_cuda));
  m.impl("rotated_add", TORCH_BOX(&rotated_add_cuda));
}

}  // namespace
}  // namespace ddp_compress

#ifdef DDP_COMPRESS_EMULATED
STABLE_TORCH_LIBRARY(ddp_compress_emulated, m) { ddp_compress::define_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(ddp_compress_emulated, CPU, m) { ddp_compress::implement_ops(m); }
#else
STABLE_TORCH_LIBRARY_IMPL(ddp_compress, CUDA, m) { ddp_compress::implement_ops(m); }
#endif
