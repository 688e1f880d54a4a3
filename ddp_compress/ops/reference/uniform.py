"""Twin of csrc/uniform.h: a block's numbers as codes of evenly spaced levels."""

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.random_words import random_words
from ddp_compress.ops.reference.wire_format import from_bits, pack, to_bits, unpack

DRAWS = 4  # numbers that one random word rounds, 16 bits for each


def quantize(block: Tensor, salt: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round numbers to evenly spaced levels, at random, so that on average they stay.

    The ``2**bits`` levels run from the smallest number to the largest. A number between two of them
    becomes the upper one with a chance of its distance from the lower one, in steps: where
    ``fraction + u >= 1``, with u within (0, 1) from 16 bits of a hash of its place.

    Args:
        block: [n], fp32.
        salt: [1], int64, what u is drawn from.
        bits: of a code, 1 to 8.

    Returns:
        codes: [ceil(n * bits / 8)], uint8, a code each, low bit first, padded with zeros to a whole
        byte.
        levels: [2], fp32, the lowest level and the step to the next. Both are NaN where something
        is not finite; where the step is no normal step (0, or infinite), all codes are 0.

    Source: Suresh et al., Distributed Mean Estimation with Limited Communication (ICML 2017), §2.2.

    Example:
        >>> quantize(torch.tensor([0.0, 0.75, 3.0]), torch.tensor([7]), bits=2)
        (tensor([52], dtype=torch.uint8), tensor([0., 1.]))
    """
    lowest, step = _levels(block, bits)
    codes = pack(to_bits(_codes(block, lowest, step, salt, bits), bits).flatten())
    return codes, torch.stack([lowest, step])


def dequantize(codes: Tensor, levels: Tensor, count: int, bits: int) -> Tensor:
    """The level of every code: ``lowest + code * step``.

    Args:
        codes: [ceil(n * bits / 8)], uint8; the padding is not looked at.
        levels: [2], fp32.
        count: numbers, n.
        bits: as encoded.

    Example:
        >>> codes, levels = torch.tensor([52], dtype=torch.uint8), torch.tensor([0.0, 1.0])
        >>> dequantize(codes, levels, count=3, bits=2)
        tensor([0., 1., 3.])
    """
    lowest, step = levels
    numbers = from_bits(unpack(codes)[: count * bits].view(count, bits))
    return lowest + numbers.float() * step


def _levels(block: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    if not block.isfinite().all():
        nan = host.tensor(torch.nan, dtype=torch.float32)
        return nan, nan
    return block.min() + 0.0, (block.max() - block.min()) / (2**bits - 1)


def _codes(block: Tensor, lowest: Tensor, step: Tensor, salt: Tensor, bits: int) -> Tensor:
    if not (step > 0 and step.isfinite()):
        return host.zeros(len(block), dtype=torch.int64)
    steps = (block - lowest) / step
    below = steps.long()
    up = steps - below.float() + _noise(len(block), salt) >= 1
    return (below + up.long()).clamp(max=2**bits - 1)


def _noise(count: int, salt: Tensor) -> Tensor:
    words = random_words(host.arange((count + DRAWS - 1) // DRAWS), salt)
    draws = words[:, None] >> 16 * host.arange(DRAWS) & 0xFFFF
    return ((draws.flatten()[:count].float() + 0.5) / 2**16).float()
