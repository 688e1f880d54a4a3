"""What every quantizer has whose entries all travel alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ddp_compress.message.layout import Package, Sparse

if TYPE_CHECKING:
    from ddp_compress.message.draw import Draw
    from ddp_compress.message.layout import Plan, Space
    from ddp_compress.recipe import Quantize


class OnePackage:
    """One list of positions, and the values at them.

    Example:
        >>> import torch
        >>> from ddp_compress.message.layout import Layout, Plan
        >>> from ddp_compress.quantize import Means
        >>> plan = Plan((Layout(("weight",), (8,)),), "tensor", density=0.25)
        >>> entries = Sparse(torch.tensor([3, 5], dtype=torch.int32), torch.tensor([1.0, 2.0]))
        >>> (package,) = Means().pack(entries, plan)
        >>> entries, counts = Means().unpack([package.places], package.values, plan)
        >>> entries.values, counts
        (tensor([1.5000, 1.5000]), tensor([2]))
    """

    def spaces(self, plan: Plan, space: Space) -> list[Space]:
        """All positions are in one list."""
        return [space]

    def pack(
        self: Quantize, entries: Sparse, plan: Plan, draw: Draw | None = None
    ) -> list[Package]:
        """All entries in one package."""
        data = self.encode(entries.values, plan.counts(entries.indices), None, draw)
        return [Package("individual", entries.indices, len(entries), data)]

    def unpack(
        self: Quantize,
        places: Sequence[Tensor],
        values: Tensor,
        plan: Plan,
        draw: Draw | None = None,
    ) -> tuple[Sparse, Tensor]:
        """The entries, and how many are in every group.

        Raises:
            ValueError: a position lies outside every group, or the bytes are bad.
        """
        (indices,) = places
        counts = plan.counts(indices)
        if indices is not None and int(counts.sum()) != len(indices):
            raise ValueError("positions: outside every group")
        return Sparse(indices, self.decode(values, counts, None, draw)), counts
