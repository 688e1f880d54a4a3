// The ops' signatures.
#pragma once

#include <torch/csrc/stable/library.h>

namespace ddp_compress {

template <typename Library>
void define_ops(Library& m) {
  m.def(
      "topk(Tensor[] grads, Tensor[] residuals, Tensor[] momenta, float momentum, Tensor bounds, "
      "Tensor groups, Tensor ks, Tensor salts, bool heavier, Tensor(a!)[] sums) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("segment_means(Tensor values, Tensor counts) -> Tensor");
  m.def(
      "accumulate(Tensor residual, Tensor grad, Tensor? momentum, float mu, "
      "Tensor(a!) next_residual, Tensor(b!)? next_momentum) -> ()");
  m.def(
      "scatter_add(Tensor(a!) out, int start, Tensor[] indices, Tensor[] values, float scale, bool "
      "afresh=False) -> ()");
  m.def("elias_fano_encode(Tensor indices, int numel, int k) -> Tensor");
  m.def("elias_fano_decode(Tensor data, int numel, int k) -> (Tensor, Tensor)");
  m.def(
      "entries_decode(Tensor[] bodies, Tensor group_ends, int numel, int k, ScalarType? dtype) -> "
      "(Tensor, Tensor, Tensor)");
  m.def("golomb_encode(Tensor indices, Tensor bounds) -> Tensor");
  m.def("golomb_decode(Tensor data, Tensor bounds, int limit) -> (Tensor, Tensor)");
  m.def("tally(Tensor[] ballots) -> (Tensor, Tensor)");
  m.def(
      "vote_keys(Tensor positions, Tensor votes, Tensor bounds, Tensor salts, int voters, bool "
      "random) -> Tensor");
  m.def("largest(Tensor keys, int k) -> Tensor");
  m.def("rans_encode(Tensor symbols, int alphabet) -> Tensor");
  m.def("rans_decode(Tensor[] messages, int count, int alphabet) -> (Tensor, Tensor)");
  m.def("cell_numbers(Tensor values, Tensor counts, Tensor edges) -> Tensor");
  m.def("cell_means(Tensor values, Tensor cells, Tensor counts, int width) -> Tensor");
  m.def("cell_values(Tensor table, Tensor cells, Tensor counts) -> Tensor");
  m.def("sign_encode(Tensor values, Tensor bounds, int block) -> (Tensor, Tensor)");
  m.def("sign_decode(Tensor bits, Tensor scales, Tensor bounds, int block) -> Tensor");
  m.def("hadamard(Tensor(a!) values, Tensor bounds, Tensor salts, bool inverse) -> ()");
  m.def("uniform_encode(Tensor values, Tensor bounds, Tensor salts, int bits) -> (Tensor, Tensor)");
  m.def("uniform_decode(Tensor codes, Tensor levels, Tensor bounds, int bits) -> Tensor");
}

}  // namespace ddp_compress
