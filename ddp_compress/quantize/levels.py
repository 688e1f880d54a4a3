"""Round values to signs, and to levels of magnitude that hold equally many of them."""

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
class Levels:
    """A sign and a level of magnitude; the levels of either sign hold equally many values.

    In every group, positive and negative values are ranked by magnitude and divided into
    2^(bits - 1) levels each; the exact mean of its level stands for a value. Zeros stay zero.

    Where there is a guess of the values, guesses are divided into levels like values, and what is
    sent is how the code of a value differs from that of its guess (their XOR), entropy-coded apart
    from those whose guess is zero: positions never seen before. Levels are the host's work.

    Args:
        bits: bits of a sign and a level, 1 to 4.

    Raises:
        TypeError: bits is no int.
        ValueError: bits lies outside its range.

    Source: Hu et al., Practical Hybrid Gradient Compression for Federated Learning Systems (IJCAI
    2024), §3.1, eq. 3 and 4.

    Example:
        >>> from ddp_compress.message.context import Context
        >>> context = Context(counts=torch.tensor([5]))
        >>> data = Levels(bits=2).encode(torch.tensor([1.0, 2.0, 0.0, -3.0, 9.0]), context)
        >>> Levels(bits=2).decode(data, context)
        tensor([ 1.5000,  1.5000,  0.0000, -3.0000,  9.0000])
    """

    bits: int = 1

    sum_dtype: ClassVar[torch.dtype] = torch.float32

    def __post_init__(self) -> None:
        check_within("bits", self.bits, 1, 4)

    @property
    def _zero(self) -> int:
        """The symbol of zeros: behind those of all levels."""
        return int(2**self.bits)

    def size(self, counts: Tensor) -> int:
        """The means, and the most that two streams of symbols take."""
        symbols = most_bytes(int(counts.sum()), self._zero + 1) + most_bytes(0, self._zero + 1)
        return 4 * self._zero * len(counts) + symbols

    def encode(self, values: Tensor, context: Context) -> Tensor:
        """The groups' means, fp32, positive levels first; symbols never seen, then those seen."""
        values, counts = to_host(values), context.counts
        codes = self._codes(values, counts)
        means = ops.cell_means(values, codes, counts, self._zero + 1)[:, : self._zero]
        parts, guessed = self._guessed(context)
        symbols = self._differences(codes, guessed)
        streams = [ops.rans_encode(symbols[part], self._zero + 1) for part in parts]
        return torch.cat([means.flatten().view(torch.uint8), *streams])

    def decode(self, data: Tensor, context: Context) -> Tensor:
        """The mean of its level for every value: fp32 [K]."""
        return self.decode_all([data], context)[0]

    def decode_all(self, bodies: Sequence[Tensor], context: Context) -> list[Tensor]:
        """The values of several ranks, in less time than one after another."""
        bodies, counts = [to_host(data) for data in bodies], context.counts
        count = self._zero * len(counts)
        means = [read_means("levels", data, count) for data in bodies]
        parts, guessed = self._guessed(context)
        symbols = guessed.new_empty(len(bodies), len(guessed))
        positions = [4 * count] * len(bodies)
        for part in parts:
            rests = [data[at:] for data, at in zip(bodies, positions, strict=True)]
            found, used = read_symbols("levels", rests, len(guessed[part]), self._zero + 1)
            symbols[:, part] = found
            positions = [at + size for at, size in zip(positions, used, strict=True)]
        for data, size in zip(bodies, positions, strict=True):
            check_size("levels", data, size)
        codes = self._differences(symbols, guessed)
        tables = [pad(each.view(-1, self._zero), (0, 1)) for each in means]
        return [ops.cell_values(*each, counts) for each in zip(tables, codes, strict=True)]

    def _guessed(self, context: Context) -> tuple[list[slice | Tensor], Tensor]:
        """Which positions were never seen, and which were; the codes of their guesses, 0 elsewhere.

        Codes are uint8 [K].
        """
        if context.guess is None:
            codes = host.zeros(int(context.counts.sum()), dtype=torch.uint8)
            return [slice(None), slice(0)], codes
        codes = self._codes(to_host(context.guess), context.counts)
        seen = codes != self._zero
        return [~seen, seen], codes * seen

    def _differences(self, codes: Tensor, guessed: Tensor) -> Tensor:
        """How codes differ from those of their guesses, and the way back; zeros stay."""
        return torch.where(codes == self._zero, codes, codes ^ guessed)

    def _codes(self, values: Tensor, counts: Tensor) -> Tensor:
        """The code of every value, uint8 [K]: its level, above that its sign, or that of zero."""
        sides = (values < 0).byte() + (values == 0).byte() * 2
        if self.bits == 1:
            return sides
        levels = self._zero // 2
        cells = 3 * host.arange(len(counts)).repeat_interleave(counts) + sides
        order = _ranked(values.abs(), cells)
        sizes = torch.bincount(cells)
        starts = sizes.cumsum(0) - sizes
        ranks = host.arange(len(values)) - starts.repeat_interleave(sizes)
        ranked = ranks * levels // sizes.repeat_interleave(sizes)
        codes = sides * levels + torch.empty_like(order).scatter_(0, order, ranked)
        return codes.clamp_(max=self._zero).byte()


def _ranked(magnitudes: Tensor, cells: Tensor) -> Tensor:
    """Positions by cell, by magnitude within a cell; of equals the first come first."""
    # Magnitudes order like their bits, and integers sort several times faster.
    bits = magnitudes.view({4: torch.int32, 8: torch.int64}[magnitudes.itemsize])
    order = bits.argsort(stable=True)
    return order[cells[order].int().argsort(stable=True)]
