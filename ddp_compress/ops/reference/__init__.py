"""The ops in plain PyTorch: the oracle of the tests, and the fallback where nothing is compiled."""

from ddp_compress.ops.reference.accumulate import accumulate
from ddp_compress.ops.reference.ballot import largest, tally, vote_keys
from ddp_compress.ops.reference.elias_fano import elias_fano_decode, elias_fano_encode
from ddp_compress.ops.reference.golomb import golomb_decode, golomb_encode
from ddp_compress.ops.reference.hadamard import hadamard
from ddp_compress.ops.reference.random_words import (
    block_salts,
    hashes,
    random_words,
    salts,
    shift_salts,
)
from ddp_compress.ops.reference.rans import rans_decode, rans_encode
from ddp_compress.ops.reference.scatter_add import scatter_add
from ddp_compress.ops.reference.segment_means import segment_means
from ddp_compress.ops.reference.signs import sign_decode, sign_encode
from ddp_compress.ops.reference.topk import topk
from ddp_compress.ops.reference.uniform import uniform_decode, uniform_encode

__all__ = [
    "accumulate",
    "block_salts",
    "elias_fano_decode",
    "elias_fano_encode",
    "golomb_decode",
    "golomb_encode",
    "hadamard",
    "hashes",
    "largest",
    "random_words",
    "rans_decode",
    "rans_encode",
    "salts",
    "scatter_add",
    "segment_means",
    "shift_salts",
    "sign_decode",
    "sign_encode",
    "tally",
    "topk",
    "uniform_decode",
    "uniform_encode",
    "vote_keys",
]
