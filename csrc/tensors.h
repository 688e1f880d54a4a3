// What the ops share that check and make tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "kernels.h"
#include "rotated.h"

namespace ddp_compress {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* write(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Calls f(G{}, A{}) with the gradient's type and the type its memory is kept in.
template <typename F>
void dispatch(ScalarType grad, F f) {
  switch (grad) {
    case ScalarType::Float:
      return f(float{}, float{});
    case ScalarType::BFloat16:
      return f(torch::headeronly::BFloat16{}, float{});
    case ScalarType::Half:
      return f(torch::headeronly::Half{}, float{});
    case ScalarType::Double:
      return f(double{}, double{});
    default:
      STD_TORCH_CHECK(false, "gradient has dtype ", grad,
                      ", expected float32, bfloat16, float16 or float64");
  }
}

// Calls f(V{}, means) with the type of values on the wire: `dtype`, or a mean for each group.
template <typename F>
void dispatch_values(std::optional<ScalarType> dtype, F f) {
  switch (dtype.value_or(ScalarType::Float)) {
    case ScalarType::Float:
      return f(float{}, !dtype);
    case ScalarType::BFloat16:
      return f(torch::headeronly::BFloat16{}, false);
    case ScalarType::Half:
      return f(torch::headeronly::Half{}, false);
    default:
      STD_TORCH_CHECK(false, "values have dtype ", *dtype,
                      ", expected float32, bfloat16, float16, or None for means");
  }
}

inline ScalarType memory_type(ScalarType grad) {
  return grad == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_kind(const Tensor& t, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has dtype ", t.scalar_type(), ", expected ",
                  dtype);
}

// Tables describe a message to the host and stay there, whatever device the message is on.
inline void check_table(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
  check_kind(t, name, ScalarType::Long);
}

inline void check_bounds(const Tensor& bounds) {
  check_table(bounds, "bounds");
  const int64_t* b = read<int64_t>(bounds);
  STD_TORCH_CHECK(bounds.numel() > 0 && b[0] == 0 && std::is_sorted(b, b + bounds.numel()),
                  "bounds must ascend from 0");
}

// A message's positions have 31 bits.
inline void check_positions_of(const Tensor& bounds) {
  check_bounds(bounds);
  STD_TORCH_CHECK(read<int64_t>(bounds)[bounds.numel() - 1] <= INT32_MAX,
                  "bounds must stay below 2**31");
}

// check_data(tensor, name, dtype) says where gradients and memory must be.
template <typename CheckData>
void check_topk(const std::vector<Tensor>& grads, const std::vector<Tensor>& residuals,
                const std::vector<Tensor>& momenta, const Tensor& bounds, const Tensor& groups,
                const Tensor& ks, const Tensor& salts, const std::vector<Tensor>& sums,
                const std::vector<Tensor>& next_momenta, CheckData check_data) {
  STD_TORCH_CHECK(!grads.empty(), "grads must hold at least one tensor");
  STD_TORCH_CHECK(residuals.size() == grads.size(), "residuals has ", residuals.size(),
                  " tensors, expected ", grads.size());
  STD_TORCH_CHECK(momenta.empty() || momenta.size() == grads.size(), "momenta has ", momenta.size(),
                  " tensors, expected none or ", grads.size());
  STD_TORCH_CHECK(sums.empty() || sums.size() == grads.size(), "sums has ", sums.size(),
                  " tensors, expected none or ", grads.size());
  const size_t left = momenta.empty() ? 0 : sums.size();
  STD_TORCH_CHECK(next_momenta.size() == left, "next_momenta has ", next_momenta.size(),
                  " tensors, expected ", left, ": one for each of sums where there are momenta");
  check_table(bounds, "bounds");
  check_table(groups, "groups");
  check_table(ks, "ks");
  check_table(salts, "salts");
  STD_TORCH_CHECK(bounds.numel() == groups.numel() + 1, "bounds has ", bounds.numel(),
                  " entries, expected one more than groups, ", groups.numel() + 1);
  STD_TORCH_CHECK(salts.numel() == 0 || salts.numel() == groups.numel(), "salts has ",
                  salts.numel(), " entries, expected none or one for each of ", groups.numel(),
                  " groups");
  const ScalarType type = grads[0].scalar_type();
  int64_t total = 0;
  const auto check_memory = [&](const std::vector<Tensor>& memory, const char* name, size_t i) {
    if (memory.empty()) return;
    check_data(memory[i], name, memory_type(type));
    STD_TORCH_CHECK(memory[i].numel() == grads[i].numel(), name, "[", i, "] has ",
                    memory[i].numel(), " elements, expected ", grads[i].numel());
  };
  for (size_t i = 0; i < grads.size(); ++i) {
    check_data(grads[i], "grads", type);
    check_memory(residuals, "residuals", i);
    check_memory(momenta, "momenta", i);
    check_memory(sums, "sums", i);
    check_memory(next_momenta, "next_momenta", i);
    total += grads[i].numel();
  }
  const int64_t* b = read<int64_t>(bounds);
  const int64_t params = groups.numel();
  STD_TORCH_CHECK(b[0] == 0 && b[params] == total, "bounds must run from 0 to ", total);
  STD_TORCH_CHECK(std::is_sorted(b, b + params + 1), "bounds must ascend");
  STD_TORCH_CHECK(total <= INT32_MAX, "a message holds at most 2**31 - 1 elements, got ", total);
  const int64_t* k = read<int64_t>(ks);
  STD_TORCH_CHECK(std::all_of(k, k + ks.numel(), [](int64_t each) { return each > 0; }),
                  "ks must be positive");
  const int64_t* g = read<int64_t>(groups);
  for (int64_t i = 0; i < params; ++i)
    STD_TORCH_CHECK(g[i] >= -1 && g[i] < ks.numel(), "groups[", i, "] is ", g[i],
                    ", expected -1 or an index into ks of ", ks.numel(), " entries");
}

template <typename CheckData>
void check_accumulate(const Tensor& residual, const Tensor& grad,
                      const std::optional<Tensor>& momentum, const Tensor& next_residual,
                      const std::optional<Tensor>& next_momentum, CheckData check_data) {
  const ScalarType type = grad.scalar_type();
  check_data(grad, "grad", type);
  const auto check_memory = [&](const Tensor& memory, const char* name) {
    check_data(memory, name, memory_type(type));
    STD_TORCH_CHECK(memory.numel() == grad.numel(), name, " has ", memory.numel(),
                    " elements, expected ", grad.numel());
  };
  check_memory(residual, "residual");
  check_memory(next_residual, "next_residual");
  STD_TORCH_CHECK(momentum.has_value() == next_momentum.has_value(),
                  "momentum and next_momentum must both be given or neither");
  if (momentum) {
    check_memory(*momentum, "momentum");
    check_memory(*next_momentum, "next_momentum");
  }
}

template <typename CheckData>
void check_scatter_add(const Tensor& out, const std::vector<Tensor>& indices,
                       const std::vector<Tensor>& values, CheckData check_data) {
  const ScalarType type = out.scalar_type();
  check_data(out, "out", type);
  STD_TORCH_CHECK(indices.size() == values.size(), "values has ", values.size(),
                  " tensors, expected ", indices.size());
  for (size_t i = 0; i < indices.size(); ++i) {
    check_data(indices[i], "indices", ScalarType::Int);
    check_data(values[i], "values", memory_type(type));
    STD_TORCH_CHECK(indices[i].numel() == values[i].numel(), "values[", i, "] has ",
                    values[i].numel(), " entries, expected ", indices[i].numel());
  }
}

// Checked tensors as kernels take them.
template <typename G, typename A>
std::vector<Chunk<G, A>> chunks_of(const std::vector<Tensor>& grads,
                                   const std::vector<Tensor>& residuals,
                                   const std::vector<Tensor>& momenta,
                                   const std::vector<Tensor>& sums,
                                   const std::vector<Tensor>& next_momenta) {
  std::vector<Chunk<G, A>> chunks;
  for (size_t i = 0; i < grads.size(); ++i)
    chunks.push_back({read<G>(grads[i]), read<A>(residuals[i]),
                      momenta.empty() ? nullptr : read<A>(momenta[i]), grads[i].numel(),
                      sums.empty() ? nullptr : write<A>(sums[i]),
                      next_momenta.empty() ? nullptr : write<A>(next_momenta[i])});
  return chunks;
}

template <typename A>
std::vector<Entries<A>> entries_of(const std::vector<Tensor>& indices,
                                   const std::vector<Tensor>& values) {
  std::vector<Entries<A>> ranks;
  for (size_t i = 0; i < indices.size(); ++i)
    ranks.push_back({read<int32_t>(indices[i]), read<A>(values[i]), indices[i].numel()});
  return ranks;
}

// Sizes of a message of signs.
struct SignSizes {
  int64_t numel, bits, scales;
};

inline SignSizes sign_sizes(const Tensor& bounds, int64_t block) {
  check_bounds(bounds);
  STD_TORCH_CHECK(block > 0 && block % 8 == 0, "block must be a positive multiple of 8, got ",
                  block);
  const int64_t* b = read<int64_t>(bounds);
  const int64_t segments = bounds.numel() - 1;
  SignSizes sizes{b[segments], 0, 0};
  for (int64_t s = 0; s < segments; ++s) {
    const int64_t numel = b[s + 1] - b[s];
    sizes.bits += (numel + 7) / 8;
    sizes.scales += numel / block + (numel % block > 0);
  }
  return sizes;
}

// check_data(tensor, name, dtype) says where results and bytes must be.
template <typename CheckData>
void check_sign_add(const Tensor& out, const std::vector<Tensor>& bits,
                    const std::vector<Tensor>& scales, const Tensor& bounds, int64_t block,
                    CheckData check_data) {
  check_data(out, "out", out.scalar_type());
  const SignSizes sizes = sign_sizes(bounds, block);
  STD_TORCH_CHECK(out.numel() == sizes.numel, "out has ", out.numel(),
                  " elements, expected the last of bounds, ", sizes.numel);
  STD_TORCH_CHECK(bits.size() == scales.size(), "scales has ", scales.size(), " tensors, expected ",
                  bits.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    check_data(bits[i], "bits", ScalarType::Byte);
    check_data(scales[i], "scales", ScalarType::Float);
    STD_TORCH_CHECK(bits[i].numel() == sizes.bits, "bits[", i, "] has ", bits[i].numel(),
                    " bytes, expected ", sizes.bits);
    STD_TORCH_CHECK(scales[i].numel() == sizes.scales, "scales[", i, "] has ", scales[i].numel(),
                    " entries, expected ", sizes.scales);
  }
}

inline std::vector<SignList> sign_lists(const std::vector<Tensor>& bits,
                                        const std::vector<Tensor>& scales) {
  std::vector<SignList> ranks;
  for (size_t i = 0; i < bits.size(); ++i)
    ranks.push_back({read<uint8_t>(bits[i]), read<float>(scales[i])});
  return ranks;
}

inline void check_numel(const Tensor& t, const char* name, int64_t numel) {
  STD_TORCH_CHECK(t.numel() == numel, name, " has ", t.numel(), " elements, expected ", numel);
}

// Of a list of positions below `numel`.
inline void check_slots(int64_t numel, int64_t k) {
  STD_TORCH_CHECK(numel <= INT32_MAX && k >= 0 && k <= numel, "k = ", k,
                  " must lie within [0, numel = ", numel, "], and numel below 2**31");
}

// check_data(tensor, name, dtype) says where bytes must be.
template <typename CheckData>
void check_entries(const std::vector<Tensor>& bodies, const Tensor& group_ends, int64_t numel,
                   int64_t k, CheckData check_data) {
  for (const Tensor& body : bodies) check_data(body, "bodies", ScalarType::Byte);
  check_data(group_ends, "group_ends", ScalarType::Int);
  check_slots(numel, k);
  STD_TORCH_CHECK(group_ends.numel() <= k, "group_ends has ", group_ends.numel(),
                  " entries, expected at most k = ", k);
}

inline void check_salts(const Tensor& salts, const char* name, int64_t groups) {
  check_table(salts, name);
  STD_TORCH_CHECK(salts.numel() == groups, name, " has ", salts.numel(), " entries, expected ",
                  groups, ", one for each of sizes");
}

// Tables of what is rotated; those without entries become null.
inline Rotation rotation_of(const Tensor& sizes, const Tensor& signs, const Tensor& free,
                            const Tensor& sent, int64_t bits) {
  check_table(sizes, "sizes");
  int64_t left = INT32_MAX;
  for (int64_t i = 0; i < sizes.numel(); ++i) {
    const int64_t size = read<int64_t>(sizes)[i];
    STD_TORCH_CHECK(size >= 0 && size <= left,
                    "sizes must be 0 or more and add up to less than 2**31, got ", size);
    left -= size;
  }
  check_table(signs, "signs");
  if (signs.numel() > 0) check_salts(signs, "signs", sizes.numel());
  check_table(free, "free");
  constexpr int64_t kFree = kLargestBlock / kSmallestBlock;
  if (free.numel() > 0) check_numel(free, "free", kFree);
  for (int64_t i = 0; i < free.numel(); ++i) {
    const int64_t place = read<int64_t>(free)[i];
    STD_TORCH_CHECK(place >= 0 && place < kSmallestBlock, "free[", i, "] is ", place,
                    ", expected a place within [0, ", kSmallestBlock, ")");
  }
  STD_TORCH_CHECK(sent.is_cpu(), "sent must be on the CPU");
  check_kind(sent, "sent", ScalarType::Bool);
  if (sent.numel() > 0) check_numel(sent, "sent", kMasks);
  const bool* const masks = sent.numel() > 0 ? read<bool>(sent) : nullptr;
  for (int64_t size = kSmallestBlock; masks && size <= kLargestBlock; size *= 2) {
    const bool* const mask = masks + size - kSmallestBlock;
    STD_TORCH_CHECK(std::find(mask, mask + size, true) < mask + size, "sent must hold one of the ",
                    size, " coefficients of a block at least");
  }
  STD_TORCH_CHECK(bits >= 1 && bits <= 8, "bits must lie within 1 and 8, got ", bits);
  const auto table = [](const Tensor& t) { return t.numel() > 0 ? read<int64_t>(t) : nullptr; };
  return {read<int64_t>(sizes), sizes.numel(), table(signs),
          table(free),          masks,         static_cast<int>(bits)};
}

// check_data(tensor, name, dtype) says where results and bytes must be.
template <typename CheckData>
void check_rotated_add(const Tensor& out, int64_t first, const std::vector<Tensor>& data,
                       const Tensor& sizes, const Cut& cut, CheckData check_data) {
  check_data(out, "out", out.scalar_type());
  for (const Tensor& each : data) {
    check_data(each, "data", ScalarType::Byte);
    check_numel(each, "data", cut.bytes);
  }
  const int64_t* const of_group = read<int64_t>(sizes);
  int64_t edge = 0;
  bool begins = first == 0, ends = first + out.numel() == 0;
  for (int64_t g = 0; g < sizes.numel(); ++g) {
    edge += of_group[g];
    begins |= edge == first;
    ends |= edge == first + out.numel();
  }
  STD_TORCH_CHECK(begins && ends, "out must hold whole groups, got ", out.numel(),
                  " values from the ", first, "-th on");
}

inline std::vector<const uint8_t*> bytes_of(const std::vector<Tensor>& data) {
  std::vector<const uint8_t*> ranks;
  for (const Tensor& each : data) ranks.push_back(read<uint8_t>(each));
  return ranks;
}

inline Drawn drawn_of(const Tensor& sizes, const Tensor& noises, bool unbiased,
                      int64_t iterations) {
  check_salts(noises, "noises", sizes.numel());
  STD_TORCH_CHECK(iterations >= 1, "iterations must be 1 or more, got ", iterations);
  return {read<int64_t>(noises), unbiased, iterations};
}

}  // namespace ddp_compress
