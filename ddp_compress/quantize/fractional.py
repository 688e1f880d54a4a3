"""Round magnitudes to intervals that are equally wide on a logarithmic scale."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_within
from ddp_compress.message.context import Context
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host
from ddp_compress.quantize.symbols import (
    cell_means,
    check_size,
    groups_of,
    most_bytes,
    read_means,
    read_symbols,
)


@dataclass(frozen=True)
class Fractional:
    """A sign, and one of 2^(bits - 1) intervals of magnitude, each as its mean.

    In every group the intervals are equally wide on a logarithmic scale, from the smallest
    magnitude to the largest. Zeros stand apart and stay zero. Means are exact (see
    `reference.segment_means`), and signs and intervals are entropy-coded (see
    `reference.rans_encode`), so that values usually cost less than ``bits`` each. All this is the
    host's work.

    Args:
        bits: bits of a sign and an interval, 2 to 6.

    Raises:
        TypeError: bits is no int.
        ValueError: bits lies outside its range.

    Source: Ozfatura et al., Distributed Sparse SGD with Majority Voting (2020), §4.3.2.

    Example:
        >>> from ddp_compress.message.context import Context
        >>> context = Context(counts=torch.tensor([5]))
        >>> values = torch.tensor([1.0, -2.0, 0.0, 16.0, -18.0])
        >>> Fractional(bits=2).decode(Fractional(bits=2).encode(values, context), context)
        tensor([  1.5000,  -1.5000,   0.0000,  17.0000, -17.0000])
    """

    bits: int = 4

    sum_dtype: ClassVar[torch.dtype] = torch.float32

    def __post_init__(self) -> None:
        check_within("bits", self.bits, 2, 6)

    @property
    def _levels(self) -> int:
        return int(2 ** (self.bits - 1))

    @property
    def _alphabet(self) -> int:
        """Zero, then every level twice: positive and negative."""
        return 2 * self._levels + 1

    def size(self, counts: Tensor) -> int:
        """The means, and the most that the symbols take."""
        return 4 * self._levels * len(counts) + most_bytes(int(counts.sum()), self._alphabet)

    def encode(self, values: Tensor, context: Context) -> Tensor:
        """The means of all levels of all groups, fp32; then a symbol a value."""
        values, counts = to_host(values), context.counts
        magnitudes = values.abs()
        levels = [_intervals(part, self._levels) for part in magnitudes.split(counts.tolist())]
        level = torch.cat([host.empty(0, dtype=torch.int64), *levels])
        means = cell_means(magnitudes, level, counts, self._levels + 1)[:, 1:]
        symbols = (2 * level - (values > 0).long()).byte()
        stream = ops.rans_encode(symbols, self._alphabet)
        return torch.cat([means.flatten().view(torch.uint8), stream])

    def decode(self, data: Tensor, context: Context) -> Tensor:
        """The mean of its level for every value, with its sign: fp32 [K]."""
        data, counts = to_host(data), context.counts
        means = read_means("fractional", data, self._levels * len(counts)).view(-1, self._levels)
        rest = data[means.nbytes :]
        symbols, used = read_symbols("fractional", rest, int(counts.sum()), self._alphabet)
        check_size("fractional", data, means.nbytes + used)
        both = torch.stack([means, -means], dim=-1).flatten(1)
        table = torch.nn.functional.pad(both, (1, 0))
        return table[groups_of(counts), symbols.long()]


def _intervals(magnitudes: Tensor, count: int) -> Tensor:
    """The interval of every magnitude of a group, int64 [n], from 1 up; 0 for zeros.

    Edges are worked out in fp64, and magnitudes compared there: none is rounded.
    """
    wide = magnitudes.double()
    logs = wide[wide > 0].log()
    if not len(logs):
        return host.zeros(len(wide), dtype=torch.int64)
    steps = host.arange(1, count, dtype=torch.float64) / count
    edges = torch.lerp(logs.min(), logs.max(), steps).exp()
    return torch.bucketize(wide, edges, right=True).add_(1).mul_(wide > 0)
