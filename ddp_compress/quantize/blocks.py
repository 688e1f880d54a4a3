"""Cut groups of values into blocks of coefficients."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

import torch
from torch import Tensor

from ddp_compress.message.plan import entry_count
from ddp_compress.ops import host

LARGEST, SMALLEST = 8192, 32  # coefficients of a block, powers of two


@dataclass(frozen=True)
class Blocks:
    """Every group in blocks of 8192, 4096, ... 32 coefficients, the largest first.

    What does not fill the smallest block is left over.

    Args:
        counts: values in every group, [G].
        hold: how many values 32 coefficients hold.
        keep: share of the coefficients that are sent.

    Example:
        >>> blocks = Blocks((100, 5), hold=32, keep=0.5)
        >>> blocks.sizes, blocks.kept_sizes, blocks.left_over
        ([64, 32], [32, 16], 9)
    """

    counts: tuple[int, ...]
    hold: int
    keep: float

    @cached_property
    def by_group(self) -> list[list[int]]:
        """The sizes of every group's blocks."""
        cut, whole = [], LARGEST // SMALLEST
        for units in (count // self.hold for count in self.counts):
            rest = [whole >> half for half in range(1, whole.bit_length())]
            smaller = [SMALLEST * part for part in rest if units & part]
            cut.append([LARGEST] * (units // whole) + smaller)
        return cut

    @cached_property
    def sizes(self) -> list[int]:
        """Coefficients of every block, [B]."""
        return [size for sizes in self.by_group for size in sizes]

    @cached_property
    def kept_sizes(self) -> list[int]:
        """Coefficients of every block that are sent, [B]."""
        return [entry_count(self.keep, size) for size in self.sizes]

    @cached_property
    def per_group(self) -> Tensor:
        """How many blocks every group has, [G] int64."""
        return host.tensor([len(sizes) for sizes in self.by_group], dtype=torch.int64)

    @cached_property
    def bounds(self) -> Tensor:
        """Offsets of the blocks among all coefficients, [B + 1] int64."""
        return _bounds(self.sizes)

    @cached_property
    def kept_bounds(self) -> Tensor:
        """Offsets of the blocks among those that are sent, [B + 1] int64."""
        return _bounds(self.kept_sizes)

    @cached_property
    def left_over(self) -> int:
        """How many values are in no block."""
        return sum(count % self.hold for count in self.counts)

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values [K] as those of all blocks, and those left over."""
        if not self.left_over:
            return values, values[:0]
        parts = values.split(self._pieces)
        return torch.cat(parts[::2]), torch.cat(parts[1::2])

    def join(self, in_blocks: Tensor, left_over: Tensor) -> Tensor:
        """Undo `split`."""
        if not self.left_over:
            return in_blocks
        parts = zip(
            in_blocks.split(self._pieces[::2]), left_over.split(self._pieces[1::2]), strict=True
        )
        return torch.cat([part for both in parts for part in both])

    def places(self, pattern: Callable[[int], Tensor]) -> Tensor:
        """Positions among all coefficients, int64: in every block those of its size's pattern."""
        patterns = {size: pattern(size) for size in set(self.sizes)}
        start, places = 0, [host.empty(0, dtype=torch.int64)]
        for size, run in groupby(self.sizes):
            end = start + size * len(list(run))
            places.append((host.arange(start, end, size)[:, None] + patterns[size]).flatten())
            start = end
        return torch.cat(places)

    @cached_property
    def _pieces(self) -> list[int]:
        """Values of every group in blocks, and left over, in turns."""
        return [n for count in self.counts for n in (count - count % self.hold, count % self.hold)]


def _bounds(sizes: list[int]) -> Tensor:
    return host.tensor([0, *sizes], dtype=torch.int64).cumsum(0)


blocks = lru_cache(maxsize=256)(Blocks)
"""The `Blocks` for some arguments, kept between steps because most steps repeat it."""
