"""The checksum of a message in plain PyTorch."""

import torch
from torch import Tensor

from ddp_compress.ops import host

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


def _mix(h: Tensor) -> Tensor:
    """MurmurHash3's finalizer, a bijection of 32-bit words; int64 products wrap, as they should."""
    h = h ^ h >> 16
    h = h * 0x85EBCA6B & _MASK
    h = h ^ h >> 13
    h = h * 0xC2B2AE35 & _MASK
    return h ^ h >> 16


def checksum(data: Tensor) -> Tensor:
    """Sum the mixed words of a message, so that altered bytes are noticed.

    `mix(size) + sum_i mix(word_i ^ (i + 1) * golden)` modulo `2**32`, over the little-endian
    32-bit words of `data`, the last one padded with zeros. `mix` is a bijection, so a change
    confined to one word is always noticed, others with probability `1 - 2**-32`. A sum has no
    order: a GPU gets the same number in parallel.

    Args:
        data: `[B]` uint8.

    Returns:
        `[1]` int64 within `[0, 2**32)`.

    Source:
        `mix`: A. Appleby, MurmurHash3, 2011, `fmix32`.

    Example:
        >>> checksum(torch.tensor([1, 2, 3], dtype=torch.uint8))
        tensor([2532834843])
    """
    size = data.numel()
    count = size // 4 + 1  # there always is a last word, of 0 to 3 bytes of data
    padded = torch.nn.functional.pad(data, (0, 4 * count - size)).view(count, 4).long()
    words = (padded << host.arange(0, 32, 8)).sum(1)
    salt = host.arange(1, count + 1) * _GOLDEN & _MASK
    return (_mix(host.tensor([size & _MASK], dtype=torch.int64)) + _mix(words ^ salt).sum()) & _MASK
