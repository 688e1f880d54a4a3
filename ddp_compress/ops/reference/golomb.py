"""Golomb-Rice in plain PyTorch: gaps between positions, with a parameter for each tensor."""

from itertools import pairwise

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.wire_format import DecodeError, decoded, pack, to_bits

PARAMETER_BITS = 5


def _best_parameter(gaps: Tensor) -> int:
    costs = [int((gaps >> b).sum()) + gaps.numel() * (b + 1) for b in range(2**PARAMETER_BITS)]
    return costs.index(min(costs))


def _codes(gaps: Tensor, b: int) -> Tensor:
    """Bits of all gaps: each `gap >> b` ones, a zero, then the `b` low bits of the gap."""
    ones = gaps >> b
    lengths = ones + 1 + b
    ends = lengths.cumsum(0)
    zeros = ends - b - 1
    # Everything is one at first: then the unary parts are done.
    bits = host.full((int(lengths.sum()),), 1, dtype=torch.int64)
    bits[zeros] = 0
    bits[zeros[:, None] + 1 + host.arange(b)] = to_bits(gaps & (2**b - 1), b)
    return bits


def _section(indices: Tensor, numel: int) -> list[Tensor]:
    header = to_bits(host.tensor(indices.numel(), dtype=torch.int64), numel.bit_length())
    if indices.numel() == 0:
        return [header]
    gaps = indices.diff(prepend=host.tensor([-1], dtype=torch.int64)) - 1
    b = _best_parameter(gaps)
    return [header, to_bits(host.tensor(b, dtype=torch.int64), PARAMETER_BITS), _codes(gaps, b)]


def golomb_encode(indices: Tensor, bounds: Tensor) -> Tensor:
    r"""Encode ascending positions as gaps, tensor by tensor, near the entropy of their density.

    In a tensor of `m` elements that holds `c` positions, a gap `d = index - previous - 1` is about
    geometric; Rice's code gives it `(d >> b) + 1 + b` bits. `b` is the one of least total cost,
    the smaller of two that cost the same; for a geometric gap of density `p = c / m`,
    `b = 1 + floor(log2(ln((sqrt(5) - 1) / 2) / ln(1 - p)))`. A count of `bit_width(m)` bits and,
    where `c > 0`, 5 bits of `b` come first. Empty tensors take no bits.

    Args:
        indices: `[K]` int32, strictly ascending within `[0, bounds[-1])`.
        bounds: `[P + 1]` int64, offsets of the `P` tensors, ascending from 0.

    Returns:
        `[B]` uint8, where `B` depends on the positions.

    Source:
        R. Rice, "Some practical universal noiseless coding techniques", 1979; the choice of `b`:
        F. Sattler et al., "Sparse Binary Compression", 2018, Algorithm 3.

    Example:
        >>> golomb_encode(torch.tensor([0, 5, 6], dtype=torch.int32), torch.tensor([0, 8]))
        tensor([ 3, 60], dtype=torch.uint8)
    """
    edges = bounds.tolist()
    cuts = torch.searchsorted(indices.long(), bounds).tolist()
    bits = [host.empty(0, dtype=torch.int64)]
    for p, (start, end) in enumerate(pairwise(edges)):
        if end > start:
            bits += _section(indices[cuts[p] : cuts[p + 1]].long() - start, end - start)
    return pack(torch.cat(bits))


class _Bits:
    """A string of '0' and '1' that is read from the left."""

    def __init__(self, data: Tensor) -> None:
        raw = bytes(data.tolist())
        number = int.from_bytes(raw, "little")
        self.text = f"{number:b}"[::-1].ljust(8 * len(raw), "0") if raw else ""
        self.position = 0

    def left(self) -> int:
        return len(self.text) - self.position

    def take(self, width: int) -> int:
        field = self.text[self.position : self.position + width]
        self.position += width
        return int(field[::-1] or "0", 2)

    def take_unary(self) -> int:
        zero = self.text.find("0", self.position)
        ones = (zero if zero >= 0 else len(self.text)) - self.position
        self.position += ones + 1
        return ones


def _read_codes(bits: _Bits, b: int, count: int, numel: int) -> list[int] | DecodeError:
    positions = []
    position = -1
    for _ in range(count):
        ones = bits.take_unary()
        low = bits.take(b)
        if bits.left() < 0:
            return DecodeError.TRUNCATED
        position += 1 + (ones << b | low)
        if position >= numel:
            return DecodeError.OUT_OF_RANGE
        positions.append(position)
    return positions


def golomb_decode(data: Tensor, bounds: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Decode what `golomb_encode` wrote; nothing in `data` is trusted.

    Checked in this order, for each tensor: its count is there, the count is at most the tensor's
    size and all counts so far at most `limit`, the bytes left can hold that many codes; then for
    each code: it ends within the bytes, its position lies within the tensor. Zero padding is
    checked last.

    Args:
        data: `[B]` uint8; bytes after the message are not looked at.
        bounds: `[P + 1]` int64, as encoded.
        limit: most positions the message may hold.

    Returns:
        Positions `[K]` int32, ascending, and a status `[1]` int64: the bytes read, or a negative
        `DecodeError` and no positions.

    Source:
        Rice 1979; F. Sattler et al., "Sparse Binary Compression", 2018, Algorithm 4.

    Example:
        >>> data = torch.tensor([3, 60], dtype=torch.uint8)
        >>> golomb_decode(data, torch.tensor([0, 8]), limit=3)
        (tensor([0, 5, 6], dtype=torch.int32), tensor([2]))
    """
    bits = _Bits(data)
    indices: list[int] = []
    edges = bounds.tolist()
    for start, end in pairwise(edges):
        numel = end - start
        if numel == 0:
            continue
        count = bits.take(numel.bit_length())
        if bits.left() < 0:
            return decoded([], DecodeError.TRUNCATED)
        if count > numel or len(indices) + count > limit:
            return decoded([], DecodeError.TOO_MANY)
        if count == 0:
            continue
        b = bits.take(PARAMETER_BITS)
        if bits.left() < count * (b + 1):
            return decoded([], DecodeError.TRUNCATED)
        positions = _read_codes(bits, b, count, numel)
        if isinstance(positions, DecodeError):
            return decoded([], positions)
        indices += [start + position for position in positions]
    if bits.take(-bits.position % 8) != 0:
        return decoded([], DecodeError.DIRTY_PADDING)
    return decoded(indices, bits.position // 8)
