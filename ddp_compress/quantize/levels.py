"""Levels of equal count, and a guess of what comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_int, check_number
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host
from ddp_compress.quantize.one_package import OnePackage
from ddp_compress.quantize.symbols import (
    cell_means,
    groups_of,
    most_bytes,
    read_means,
    read_symbols,
)

if TYPE_CHECKING:
    from ddp_compress.message.plan import Plan
    from ddp_compress.message.random_key import RandomKey


@dataclass(frozen=True)
class Levels(OnePackage):
    """A sign and a level of magnitude; the levels of either sign hold equally many values.

    In every group, positive and negative values are ranked by magnitude and divided into
    2^(bits - 1) levels each; the exact mean of its level stands for a value. Zeros stay zero.

    A predictor keeps the running average of every parameter's mean gradients: one fp32 number a
    parameter on every rank, 4 bytes. The averages at the positions sent are divided into levels
    like values, and what is sent is how the code of a value differs from that of its guess (their
    XOR), entropy-coded apart from the positions never seen before. The second moment by which the
    paper divides the average is left out: it cannot change a sign. Levels are the host's work.

    Args:
        bits: bits of a sign and a level, 1 to 4.
        predictor: beta, what the running average keeps of itself in a step, in [0, 1); None for
            no predictor.

    Raises:
        ValueError: an argument lies outside its range.

    Source: Hu et al., Practical Hybrid Gradient Compression for Federated Learning Systems (IJCAI
    2024), §3.1, eq. 3 and 4.

    Example:
        >>> levels, counts = Levels(bits=2, predictor=0.9), torch.tensor([5])
        >>> values = torch.tensor([1.0, 2.0, 0.0, -3.0, 9.0])
        >>> levels.decode(levels.encode(values, counts), counts)
        tensor([ 1.5000,  1.5000,  0.0000, -3.0000,  9.0000])
        >>> levels.tensors
        {'average': None}
    """

    bits: int = 1
    predictor: float | None = None

    def __post_init__(self) -> None:
        if check_int("bits", self.bits) not in range(1, 5):
            raise ValueError(f"bits must lie within 1 and 4, got {self.bits!r}")
        if self.predictor is None:
            return
        if not 0.0 <= check_number("predictor", self.predictor, "a number or None") < 1.0:
            raise ValueError(f"predictor must lie in [0, 1) or be None, got {self.predictor!r}")

    @property
    def tensors(self) -> Mapping[str, torch.dtype | None]:
        """The running average, where there is a predictor."""
        return {} if self.predictor is None else {"average": None}

    @property
    def _zero(self) -> int:
        """The symbol of zeros: behind those of all levels."""
        return int(2**self.bits)

    def size(self, plan: Plan) -> int:
        """The means, and the most that two streams of symbols take."""
        symbols = most_bytes(plan.k, self._zero + 1) + most_bytes(0, self._zero + 1)
        return 4 * self._zero * len(plan.ks) + symbols

    def encode(
        self,
        values: Tensor,
        counts: Tensor,
        guess: Tensor | None = None,
        key: RandomKey | None = None,
    ) -> Tensor:
        """The groups' means, fp32, positive levels first; symbols never seen, then those seen."""
        values = to_host(values)
        codes = self._codes(values, counts)
        means = cell_means(values, codes, counts, self._zero + 1)[:, : self._zero]
        seen, guessed = self._guessed(guess, counts)
        symbols = torch.where(codes == self._zero, codes, codes ^ guessed).byte()
        streams = [ops.rans_encode(symbols[mask], self._zero + 1) for mask in (~seen, seen)]
        return torch.cat([means.flatten().view(torch.uint8), *streams])

    def decode(
        self,
        data: Tensor,
        counts: Tensor,
        guess: Tensor | None = None,
        key: RandomKey | None = None,
    ) -> Tensor:
        """The mean of its level for every value: fp32 [K]."""
        data = to_host(data)
        means = read_means("levels", data, self._zero * len(counts)).view(-1, self._zero)
        seen, guessed = self._guessed(guess, counts)
        symbols, position = torch.empty_like(guessed), means.nbytes
        for mask in (~seen, seen):
            count = int(mask.sum())
            found, used = read_symbols("levels", data[position:], count, self._zero + 1)
            symbols[mask] = found.long()
            position += used
        if position != len(data):
            raise ValueError(f"levels: got {len(data)} bytes, expected {position}")
        codes = torch.where(symbols == self._zero, symbols, symbols ^ guessed)
        table = torch.nn.functional.pad(means, (0, 1))
        return table[groups_of(counts), codes]

    def learn(self, guess: Tensor, mean: Tensor) -> Tensor:
        """The running average [K], moved towards the new mean where it is kept."""
        if self.predictor is None:
            return guess
        return self.predictor * guess + (1.0 - self.predictor) * mean

    def _guessed(self, guess: Tensor | None, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Which positions were seen before, and the codes of their guesses, 0 elsewhere."""
        if guess is None or self.predictor is None:
            codes = host.zeros(int(counts.sum()), dtype=torch.int64)
            return codes.bool(), codes
        codes = self._codes(to_host(guess), counts)
        seen = codes != self._zero
        return seen, codes * seen

    def _codes(self, values: Tensor, counts: Tensor) -> Tensor:
        """The code of every value, int64 [K]: its level, above that its sign, or that of zero."""
        sides = torch.where(values == 0, 2, (values < 0).long())
        if self.bits == 1:
            return sides
        levels = self._zero // 2
        cells = 3 * groups_of(counts) + sides
        order = _ranked(values.abs(), cells)
        sizes = torch.bincount(cells)
        starts = sizes.cumsum(0) - sizes
        ranks = host.arange(len(values)) - starts.repeat_interleave(sizes)
        ranked = ranks * levels // sizes.repeat_interleave(sizes)
        codes = sides * levels + torch.empty_like(order).scatter_(0, order, ranked)
        return codes.clamp_(max=self._zero)


def _ranked(magnitudes: Tensor, cells: Tensor) -> Tensor:
    """Positions by cell, by magnitude within a cell; of equals the first come first."""
    # Magnitudes order like their bits, and integers sort several times faster.
    bits = magnitudes.view({4: torch.int32, 8: torch.int64}[magnitudes.itemsize])
    order = bits.argsort(stable=True)
    return order[cells[order].int().argsort(stable=True)]
