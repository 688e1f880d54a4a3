"""Twin of csrc/cpu/signs.cpp."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.segment_means import exact_mean
from ddp_compress.ops.reference.wire_format import pack, unpack


def _sizes(bounds: Tensor, block: int) -> Tensor:
    """Elements of every segment, [P]."""
    sizes = bounds.diff()
    if not len(bounds) or bounds[0] != 0 or (sizes < 0).any():
        raise RuntimeError(f"bounds must ascend from 0, got {bounds.tolist()}")
    if block <= 0 or block % 8:
        raise RuntimeError(f"block must be a positive multiple of 8, got {block}")
    return sizes


def sign_encode(values: Tensor, bounds: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Signs of values, a bit each, and the mean magnitude of every block of a segment.

    Blocks begin anew with each segment, whose last may be shorter. Means are exact, as in
    `segment_means`; that of a block that holds an infinity or a NaN is NaN.

    Args:
        values: [N], fp32 or fp64.
        bounds: [P + 1], int64, offsets of the P segments, from 0 to N.
        block: elements of a block, a multiple of 8.

    Returns:
        bits: [sum of ceil(n / 8)], uint8, for segments of n elements: 1 where a value has its sign
        bit set, low bit first, every segment padded with zeros to a whole byte.
        scales: [sum of ceil(n / block)], fp32.

    Raises:
        RuntimeError: the bounds do not ascend from 0 to N, or the block is no multiple of 8.

    Example:
        >>> sign_encode(torch.tensor([1.0, -2.0, -8.0]), torch.tensor([0, 2, 3]), block=8)
        (tensor([2, 1], dtype=torch.uint8), tensor([1.5000, 8.0000]))
    """
    sizes = _sizes(bounds, block).tolist()
    if len(values) != sum(sizes):
        raise RuntimeError(
            f"values has {len(values)} elements, expected the last of bounds, {sum(sizes)}"
        )
    segments = values.split(sizes)
    bits = [pack(segment.signbit().long()) for segment in segments]
    blocks = [part for segment in segments if len(segment) for part in segment.split(block)]
    scales = [exact_mean(part.abs()) for part in blocks]
    return (
        torch.cat([host.empty(0, dtype=torch.uint8), *bits]),
        host.tensor(scales, dtype=torch.float32),
    )


def sign_decode(bits: Tensor, scales: Tensor, bounds: Tensor, block: int) -> Tensor:
    """The scale of its block for every element, with the element's sign.

    Args:
        bits: [sum of ceil(n / 8)], uint8; the padding is not looked at.
        scales: [sum of ceil(n / block)], fp32.
        bounds: [P + 1], int64, as encoded.
        block: as encoded.

    Returns:
        [N], fp32.

    Raises:
        RuntimeError: the bits or scales are not as many as the bounds and the block ask for.

    Example:
        >>> bits, scales = torch.tensor([2, 1], dtype=torch.uint8), torch.tensor([1.5, 8.0])
        >>> sign_decode(bits, scales, torch.tensor([0, 2, 3]), block=8)
        tensor([ 1.5000, -1.5000, -8.0000])
    """
    sizes = _sizes(bounds, block)
    in_bytes, in_blocks = (sizes + 7) // 8, (sizes + block - 1) // block
    if len(bits) != in_bytes.sum():
        raise RuntimeError(f"bits has {len(bits)} bytes, expected {int(in_bytes.sum())}")
    if len(scales) != in_blocks.sum():
        raise RuntimeError(f"scales has {len(scales)} entries, expected {int(in_blocks.sum())}")
    parts = zip(
        bits.split(in_bytes.tolist()),
        scales.split(in_blocks.tolist()),
        sizes.tolist(),
        strict=True,
    )
    values = []
    for signs, means, numel in parts:
        magnitudes = means.repeat_interleave(block)[:numel]
        values.append(torch.where(unpack(signs)[:numel] > 0, -magnitudes, magnitudes))
    return torch.cat([scales.new_empty(0), *values])


def sign_add(
    out: Tensor,
    bits: Sequence[Tensor],
    scales: Sequence[Tensor],
    bounds: Tensor,
    block: int,
    scale: float,
    afresh: bool = False,
) -> None:
    """Add what W ranks have sent as signs, in rank order.

    ``out += scale * sign_decode(bits[r], scales[r])`` for r = 0 … W-1, tile by tile. bf16 and fp16
    are summed in fp32 and rounded once.

    Args:
        out: [N], fp32, bf16, fp16 or fp64; changed in place.
        bits: W tensors, see `sign_decode`.
        scales: W tensors, see `sign_decode`.
        bounds: [P + 1], int64, as encoded.
        block: as encoded.
        scale: factor of every value, 1/W for a mean.
        afresh: whether ``out`` counts as zero before, whatever it holds.

    Raises:
        RuntimeError: see `sign_decode`; or ``out`` has not N elements.

    Example:
        >>> bits, scales = torch.tensor([2, 1], dtype=torch.uint8), torch.tensor([1.5, 8.0])
        >>> out = torch.ones(3)
        >>> sign_add(out, [bits], [scales], torch.tensor([0, 2, 3]), block=8, scale=2.0)
        >>> out
        tensor([  4.,  -2., -15.])
    """
    numel = int(_sizes(bounds, block).sum())
    if len(out) != numel:
        raise RuntimeError(f"out has {len(out)} elements, expected the last of bounds, {numel}")
    if len(bits) != len(scales):
        raise RuntimeError(f"scales has {len(scales)} tensors, expected {len(bits)}")
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    total = torch.zeros_like(out, dtype=wide) if afresh else out.to(wide)
    for signs, means in zip(bits, scales, strict=True):
        values = sign_decode(signs, means, bounds, block).to(wide)
        total += values * host.tensor(scale, dtype=wide)
    out.copy_(total)
