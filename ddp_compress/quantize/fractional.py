"""Round magnitudes to intervals that are equally wide on a logarithmic scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddp_compress import ops
from ddp_compress.checks import check_within
from ddp_compress.message.context import Context
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host
from ddp_compress.quantize.symbols import check_size, most_bytes, read_means, read_symbols


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
        edges = [_edges(part, self._levels) for part in magnitudes.split(counts.tolist())]
        none = host.empty(0, self._levels - 1, dtype=torch.float64)
        symbols = ops.cell_numbers(values, counts, torch.cat([none, *edges]))
        level = (symbols + 1) >> 1
        means = ops.cell_means(magnitudes, level, counts, self._levels + 1)[:, 1:]
        stream = ops.rans_encode(symbols, self._alphabet)
        return torch.cat([means.flatten().view(torch.uint8), stream])

    def decode(self, data: Tensor, context: Context) -> Tensor:
        """The mean of its level for every value, with its sign: fp32 [K]."""
        return self.decode_all([data], context)[0]

    def decode_all(self, bodies: Sequence[Tensor], context: Context) -> list[Tensor]:
        """The values of several ranks, in less time than one after another."""
        bodies, counts = [to_host(data) for data in bodies], context.counts
        count = self._levels * len(counts)
        means = [read_means("fractional", data, count) for data in bodies]
        rests = [data[4 * count :] for data in bodies]
        symbols, used = read_symbols("fractional", rests, int(counts.sum()), self._alphabet)
        for data, size in zip(bodies, used, strict=True):
            check_size("fractional", data, 4 * count + size)
        tables = [_with_signs(each.view(-1, self._levels)) for each in means]
        return [ops.cell_values(*each, counts) for each in zip(tables, symbols, strict=True)]


def _edges(magnitudes: Tensor, count: int) -> Tensor:
    """Edges between the intervals of a group, [1, count - 1] fp64, in which none is rounded."""
    if not len(magnitudes) or magnitudes.amin() == 0:
        magnitudes = magnitudes[magnitudes > 0]
    if not len(magnitudes):
        return host.zeros(1, count - 1, dtype=torch.float64)
    low, high = torch.stack(magnitudes.aminmax()).double().log()
    steps = host.arange(1, count, dtype=torch.float64) / count
    return torch.lerp(low, high, steps).exp()[None]


def _with_signs(means: Tensor) -> Tensor:
    """What every symbol stands for: zero, then every level's mean, positive and negative."""
    both = torch.stack([means, -means], dim=-1).flatten(1)
    return pad(both, (1, 0))
