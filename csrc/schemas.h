// The ops' signatures.
#pragma once

#include <torch/csrc/stable/library.h>

namespace ddp_compress {

template <typename Library>
void define_ops(Library& m) {
  m.def(
      "topk(Tensor[] grads, Tensor[] residuals, Tensor[] momenta, float momentum, Tensor bounds, "
      "Tensor groups, Tensor ks, Tensor salts, bool heavier, Tensor(a!)[] sums, "
      "Tensor(b!)[] next_momenta) -> "
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
  m.def(
      "largest_kernels(Tensor[] values, Tensor bounds, Tensor numels, Tensor strides, Tensor "
      "groups, Tensor ks, int m, int count) -> Tensor");
  m.def(
      "rank_kernels(Tensor[] values, Tensor bounds, Tensor numels, Tensor strides, Tensor groups, "
      "Tensor ks, Tensor[] patterns, Tensor prices, Tensor single_prices) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "split_kernels(Tensor positions, Tensor values, Tensor bounds, Tensor numels, Tensor "
      "strides) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "join_kernels(Tensor[] kernels, Tensor[] of_kernels, Tensor singles, Tensor of_singles, "
      "Tensor bounds, Tensor numels, Tensor strides) -> (Tensor, Tensor)");
  m.def("rans_encode(Tensor symbols, int alphabet) -> Tensor");
  m.def("rans_decode(Tensor[] messages, int count, int alphabet) -> (Tensor, Tensor)");
  m.def("cell_numbers(Tensor values, Tensor counts, Tensor edges) -> Tensor");
  m.def("cell_means(Tensor values, Tensor cells, Tensor counts, int width) -> Tensor");
  m.def("cell_values(Tensor table, Tensor cells, Tensor counts) -> Tensor");
  m.def("sign_encode(Tensor values, Tensor bounds, int block) -> (Tensor, Tensor)");
  m.def("sign_decode(Tensor bits, Tensor scales, Tensor bounds, int block) -> Tensor");
  m.def(
      "sign_add(Tensor(a!) out, Tensor[] bits, Tensor[] scales, Tensor bounds, int block, float "
      "scale, bool afresh=False) -> ()");
  m.def(
      "rotated_encode(Tensor values, Tensor sizes, Tensor signs, Tensor noises, Tensor free, "
      "Tensor sent, bool unbiased, int iterations, int bits) -> Tensor");
  m.def(
      "rotated_decode(Tensor data, Tensor sizes, Tensor signs, Tensor free, Tensor sent, int "
      "bits) -> Tensor");
  m.def(
      "rotated_add(Tensor(a!) out, int first, Tensor[] data, Tensor sizes, Tensor signs, Tensor "
      "free, Tensor sent, int bits, float limit, float scale, bool afresh=False) -> ()");
}

}  // namespace ddp_compress
