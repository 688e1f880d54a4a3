"""A flat gradient cut into L slices, one for each of the ranks that share a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ddp_compress.message.conv_kernels import ConvKernel
from ddp_compress.message.layout import Layout


@dataclass(frozen=True)
class Slices:
    """Every parameter is cut into L ranges; a node's rank l owns the l-th of each.

    So what a rank owns does not depend on the order in which parameters come, which DDP changes.
    No kernel of a convolution is cut in two.

    Args:
        layout: of the whole gradient.
        count: L.

    Example:
        >>> slices = Slices(Layout(("weight", "bias"), (6, 1)), count=2)
        >>> [layout.sizes for layout in slices.layouts]
        [(3, 0), (3, 1)]
        >>> parts = [torch.cat(pieces) for pieces in slices.views(torch.arange(7))]
        >>> parts
        [tensor([0, 1, 2]), tensor([3, 4, 5, 6])]
        >>> slices.join(parts, into=torch.empty(7, dtype=torch.int64))
        tensor([0, 1, 2, 3, 4, 5, 6])
    """

    layout: Layout
    count: int

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """Of every slice, [L]."""
        whole = self.layout
        return tuple(
            Layout(whole.names, tuple(sizes), whole.kernels, whole.sizes)
            for sizes in zip(*self._lengths, strict=True)
        )

    @cached_property
    def numels(self) -> list[int]:
        """Elements of every slice, [L]."""
        return [layout.numel for layout in self.layouts]

    def views(self, flat: Tensor) -> list[tuple[Tensor, ...]]:
        """Every slice of a flat tensor [N], as one piece of each parameter: [L][P]."""
        pieces = flat.split(self._pieces)
        return [pieces[place :: self.count] for place in range(self.count)]

    def join(self, parts: Sequence[Tensor], into: Tensor) -> Tensor:
        """Undo `views`, where the pieces of every slice lie side by side."""
        by_slice = [
            part.split(list(layout.sizes)) for part, layout in zip(parts, self.layouts, strict=True)
        ]
        return torch.cat([p for pieces in zip(*by_slice, strict=True) for p in pieces], out=into)

    @cached_property
    def _lengths(self) -> list[list[int]]:
        """Elements that each slice has of every parameter, [P][L]."""
        kernels = self.layout.kernels or (ConvKernel(),) * len(self.layout.sizes)
        return [
            range_lengths(size, kernel.block, self.count)
            for size, kernel in zip(self.layout.sizes, kernels, strict=True)
        ]

    @cached_property
    def _pieces(self) -> list[int]:
        """The same, in the order of the whole gradient."""
        return [length for lengths in self._lengths for length in lengths]


@lru_cache(maxsize=1024)
def slices_of(layout: Layout, count: int) -> Slices:
    """The `Slices` for these arguments, kept between steps because all of them repeat it."""
    return Slices(layout, count)


def range_lengths(size: int, block: int, count: int) -> list[int]:
    """Elements of the L ranges of one parameter, [L].

    Args:
        size: elements of the parameter.
        block: elements that are not torn apart.
        count: L.

    Example:
        >>> range_lengths(36, 9, count=3), range_lengths(36, 18, count=3)
        ([9, 9, 18], [0, 18, 18])
    """
    edges = [size // block * place // count * block for place in range(count)]
    return [end - start for start, end in pairwise([*edges, size])]
