"""Twin of csrc/cpu/hadamard.h: the randomized Walsh-Hadamard transform of a block."""

import math

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.random_words import random_words
from ddp_compress.ops.reference.wire_format import to_bits


def hadamard(block: Tensor, salt: Tensor) -> Tensor:
    """The transform ``H D x / sqrt(n)``.

    D turns the signs of random elements, H is the Hadamard matrix in its natural order. Both keep
    lengths. The steps of H go from neighbours to what is farthest apart, each a sum or a difference
    of two fp32 numbers; a block is scaled where its signs are turned. So every machine finds the
    same bits.

    Args:
        block: [n], fp32, n a power of two. What is not finite spoils all of it.
        salt: [1], int64, what the signs are drawn from.

    Source: Suresh et al., Distributed Mean Estimation with Limited Communication (ICML 2017), §3.

    Example:
        >>> x = hadamard(torch.tensor([3.0, 0.0, 0.0, 0.0]), torch.tensor([1]))
        >>> x.abs()
        tensor([1.5000, 1.5000, 1.5000, 1.5000])
        >>> inverse_hadamard(x, torch.tensor([1])).abs()
        tensor([3., 0., 0., 0.])
    """
    return _steps(_flipped(block, salt))


def inverse_hadamard(block: Tensor, salt: Tensor) -> Tensor:
    """The way back, ``D H y / sqrt(n)``; see `hadamard`."""
    return _flipped(_steps(block), salt)


def _flipped(block: Tensor, salt: Tensor) -> Tensor:
    """A block with its signs turned, scaled."""
    words = random_words(host.arange((len(block) + 63) // 64), salt)
    signs = 1.0 - 2.0 * to_bits(words, 64).flatten()[: len(block)].float()
    return block * (signs * (1 / math.sqrt(len(block))))


def _steps(block: Tensor) -> Tensor:
    apart = 1
    while apart < len(block):
        first, second = block.view(-1, 2, apart).unbind(1)
        block = torch.stack([first + second, first - second], 1).flatten()
        apart *= 2
    return block
