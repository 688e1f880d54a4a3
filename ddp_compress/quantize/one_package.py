"""What every quantizer has whose entries all travel alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ddp_compress.layout import Package, Sparse

if TYPE_CHECKING:
    from ddp_compress.layout import Plan, Space
    from ddp_compress.recipe import Quantize


class OnePackage:
    """One list of positions, and the values at them.

    Example:
        >>> import torch
        >>> from ddp_compress.layout import Layout, Plan
        >>> from ddp_compress.quantize import Means
        >>> plan = Plan((Layout(("weight",), (8,)),), "tensor", density=0.25)
        >>> entries = Sparse(torch.tensor([3, 5], dtype=torch.int32), torch.tensor([1.0, 2.0]))
        >>> (package,) = Means().pack(entries, plan)
        >>> Means().unpack([package.places], package.values, plan).values
        tensor([1.5000, 1.5000])
    """

    def spaces(self, plan: Plan, space: Space) -> list[Space]:
        """All positions are in one list."""
        return [space]

    def pack(self: Quantize, entries: Sparse, plan: Plan) -> list[Package]:
        """All entries in one package."""
        data = self.encode(entries.values, plan.counts(entries.indices))
        return [Package("individual", entries.indices, len(entries), data)]

    def unpack(self: Quantize, places: Sequence[Tensor], values: Tensor, plan: Plan) -> Sparse:
        """The entries again; ValueError where a position lies outside every group."""
        (indices,) = places
        counts = plan.counts(indices)
        if indices is not None and int(counts.sum()) != len(indices):
            raise ValueError("positions: outside every group")
        return Sparse(indices, self.decode(values, counts))
