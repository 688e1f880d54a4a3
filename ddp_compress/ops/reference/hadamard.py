"""Twin of csrc/cpu/hadamard.cpp."""

import math

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.random_words import random_words
from ddp_compress.ops.reference.wire_format import to_bits

LARGEST_BLOCK = 8192


def hadamard(values: Tensor, bounds: Tensor, salts: Tensor, inverse: bool) -> None:
    """The randomized Walsh-Hadamard transform of every block, in place: ``H D x / sqrt(n)``.

    D turns the signs of random elements, H is the Hadamard matrix in its natural order. Both keep
    lengths, and the inverse is ``D H y / sqrt(n)``. The steps of H go from neighbours to what is
    farthest apart, each a sum or a difference of two fp32 numbers; a block is scaled where its
    signs are turned. So every machine finds the same bits.

    Args:
        values: [N], fp32; replaced. What is not finite spoils its block alone.
        bounds: [B + 1], int64, offsets of the B blocks, from 0 to N: each of no element or a power
            of two, up to 8192.
        salts: [B], int64, what the signs are drawn from: alike for a transform and its inverse.
        inverse: the inverse instead.

    Raises:
        RuntimeError: a block has another size, or the sizes do not fit.

    Source: Suresh et al., Distributed Mean Estimation with Limited Communication (ICML 2017), §3.

    Example:
        >>> x, bounds = torch.tensor([3.0, 0.0, 0.0, 0.0, 5.0]), torch.tensor([0, 4, 5])
        >>> hadamard(x, bounds, torch.tensor([1, 1]), inverse=False)
        >>> x.abs()
        tensor([1.5000, 1.5000, 1.5000, 1.5000, 5.0000])
        >>> hadamard(x, bounds, torch.tensor([1, 1]), inverse=True)
        >>> x.abs()
        tensor([3., 0., 0., 0., 5.])
    """
    sizes = check_blocks(values, bounds, salts)
    for block, size in enumerate(sizes):
        if size & (size - 1) or size > LARGEST_BLOCK:
            raise RuntimeError(
                f"block {block} has {size} elements, "
                f"expected none or a power of two up to {LARGEST_BLOCK}"
            )
    blocks = zip(values.split(sizes), salts, strict=True)
    parts = [_inverse(block, salt) if inverse else _forward(block, salt) for block, salt in blocks]
    values.copy_(torch.cat([values.new_empty(0), *parts]))


def check_blocks(values: Tensor, bounds: Tensor, salts: Tensor) -> list[int]:
    """The sizes of the blocks.

    Raises:
        RuntimeError: the bounds do not ascend from 0 to N, or there is not one salt for each.
    """
    sizes: list[int] = bounds.diff().tolist()
    if not len(bounds) or bounds[0] != 0 or min(sizes, default=0) < 0:
        raise RuntimeError(f"bounds must ascend from 0, got {bounds.tolist()}")
    if len(values) != bounds[-1]:
        raise RuntimeError(f"values has {len(values)} elements, expected {int(bounds[-1])}")
    if len(salts) != len(sizes):
        raise RuntimeError(f"salts has {len(salts)} elements, expected {len(sizes)}")
    return sizes


def _forward(block: Tensor, salt: Tensor) -> Tensor:
    return _steps(_flipped(block, salt))


def _inverse(block: Tensor, salt: Tensor) -> Tensor:
    return _flipped(_steps(block), salt)


def _flipped(block: Tensor, salt: Tensor) -> Tensor:
    """A block with its signs turned, scaled."""
    words = random_words(host.arange((len(block) + 63) // 64), salt)
    signs = 1.0 - 2.0 * to_bits(words, 64).flatten()[: len(block)].float()
    return block * (signs * (1 / math.sqrt(max(1, len(block)))))


def _steps(block: Tensor) -> Tensor:
    apart = 1
    while apart < len(block):
        first, second = block.view(-1, 2, apart).unbind(1)
        block = torch.stack([first + second, first - second], 1).flatten()
        apart *= 2
    return block
