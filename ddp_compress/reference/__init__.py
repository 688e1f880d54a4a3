"""The ops in plain PyTorch: the oracle of the tests, and the fallback where nothing is compiled."""

from ddp_compress.reference.accumulate import accumulate
from ddp_compress.reference.ballot import (
    hashes,
    largest,
    salts,
    shift_salts,
    tally,
    vote_keys,
)
from ddp_compress.reference.checksum import checksum
from ddp_compress.reference.elias_fano import elias_fano_decode, elias_fano_encode
from ddp_compress.reference.golomb import golomb_decode, golomb_encode
from ddp_compress.reference.rans import rans_decode, rans_encode
from ddp_compress.reference.scatter_add import scatter_add
from ddp_compress.reference.segment_means import segment_means
from ddp_compress.reference.signs import sign_decode, sign_encode
from ddp_compress.reference.topk import topk

__all__ = [
    "accumulate",
    "checksum",
    "elias_fano_decode",
    "elias_fano_encode",
    "golomb_decode",
    "golomb_encode",
    "hashes",
    "largest",
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
    "vote_keys",
]
