"""Twin of csrc/cpu/uniform.cpp."""

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.hadamard import check_blocks
from ddp_compress.ops.reference.random_words import random_words
from ddp_compress.ops.reference.wire_format import from_bits, pack, to_bits, unpack

DRAWS = 4  # numbers that one random word rounds, 16 bits for each


def uniform_encode(
    values: Tensor, bounds: Tensor, salts: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """Round numbers to evenly spaced levels, at random, so that on average they stay.

    The ``2**bits`` levels of a block run from its smallest number to its largest. A number between
    two of them becomes the upper one with a chance of its distance from the lower one, in steps:
    where ``fraction + u >= 1``, with u within (0, 1) from 16 bits of a hash of its place.

    Args:
        values: [N], fp32.
        bounds: [B + 1], int64, offsets of the B blocks, from 0 to N.
        salts: [B], int64, what u is drawn from.
        bits: of a code, 1 to 8.

    Returns:
        codes: [sum of ceil(n * bits / 8)], uint8, for blocks of n numbers: a code each, low bit
        first, every block padded with zeros to a whole byte.
        levels: [2 B], fp32, the lowest level of every block and the step to the next. Both are NaN
        where something is not finite; where the step is no normal step (0, or infinite), all codes
        are 0.

    Raises:
        RuntimeError: the bits lie outside their range, or the sizes do not fit.

    Source: Suresh et al., Distributed Mean Estimation with Limited Communication (ICML 2017), §2.2.

    Example:
        >>> values, salts = torch.tensor([0.0, 0.75, 3.0]), torch.tensor([7])
        >>> uniform_encode(values, torch.tensor([0, 3]), salts, bits=2)
        (tensor([52], dtype=torch.uint8), tensor([0., 1.]))
    """
    _check_bits(bits)
    sizes = check_blocks(values, bounds, salts)
    codes, levels = [host.empty(0, dtype=torch.uint8)], [host.empty(0, dtype=torch.float32)]
    for block, salt in zip(values.split(sizes), salts, strict=True):
        lowest, step = _levels(block, bits)
        codes.append(pack(to_bits(_codes(block, lowest, step, salt, bits), bits).flatten()))
        levels.append(torch.stack([lowest, step]))
    return torch.cat(codes), torch.cat(levels)


def uniform_decode(codes: Tensor, levels: Tensor, bounds: Tensor, bits: int) -> Tensor:
    """The level of every code: ``lowest + code * step``.

    Args:
        codes: [sum of ceil(n * bits / 8)], uint8; the padding is not looked at.
        levels: [2 B], fp32.
        bounds: [B + 1], int64, as encoded.
        bits: as encoded.

    Returns:
        [N], fp32.

    Raises:
        RuntimeError: the codes or levels are not as many as the bounds and the bits ask for.

    Example:
        >>> codes, levels = torch.tensor([52], dtype=torch.uint8), torch.tensor([0.0, 1.0])
        >>> uniform_decode(codes, levels, torch.tensor([0, 3]), bits=2)
        tensor([0., 1., 3.])
    """
    _check_bits(bits)
    coefficients = host.empty(int(bounds[-1:].sum()), dtype=torch.float32)
    sizes = check_blocks(coefficients, bounds, bounds[1:])
    in_bytes = [(size * bits + 7) // 8 for size in sizes]
    if len(codes) != sum(in_bytes):
        raise RuntimeError(f"codes has {len(codes)} elements, expected {sum(in_bytes)}")
    if len(levels) != 2 * len(sizes):
        raise RuntimeError(f"levels has {len(levels)} elements, expected {2 * len(sizes)}")
    values = [levels.new_empty(0)]
    parts = zip(codes.split(in_bytes), levels.view(-1, 2), sizes, strict=True)
    for data, (lowest, step), size in parts:
        numbers = from_bits(unpack(data)[: size * bits].view(size, bits))
        values.append(lowest + numbers.float() * step)
    return torch.cat(values)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise RuntimeError(f"bits must lie within 1 and 8, got {bits}")


def _levels(block: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    if not len(block) or not block.isfinite().all():
        same = host.tensor(torch.nan if len(block) else 0.0, dtype=torch.float32)
        return same, same
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
