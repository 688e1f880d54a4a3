"""What every quantizer has whose entries all travel alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ddp_compress.message.entries import Entries
from ddp_compress.message.entry_list import EntryList

if TYPE_CHECKING:
    from ddp_compress.message.plan import Plan
    from ddp_compress.message.random_key import RandomKey
    from ddp_compress.message.universe import Universe
    from ddp_compress.recipe import Quantize


class OnePackage:
    """One list of positions, and the values at them.

    Example:
        >>> import torch
        >>> from ddp_compress.message.layout import Layout
        >>> from ddp_compress.message.plan import Plan
        >>> from ddp_compress.quantize import Means
        >>> plan = Plan((Layout(("weight",), (8,)),), "tensor", density=0.25)
        >>> entries = Entries(torch.tensor([3, 5], dtype=torch.int32), torch.tensor([1.0, 2.0]))
        >>> (package,) = Means().pack(entries, plan)
        >>> entries, counts = Means().unpack([package.places], package.values, plan)
        >>> entries.values, counts
        (tensor([1.5000, 1.5000]), tensor([2]))
    """

    def universes(self, plan: Plan, universe: Universe) -> list[Universe]:
        """All positions are in one list."""
        return [universe]

    def pack(
        self: Quantize, entries: Entries, plan: Plan, key: RandomKey | None = None
    ) -> list[EntryList]:
        """All entries in one package."""
        data = self.encode(entries.values, plan.counts(entries.indices), None, key)
        return [EntryList("individual", entries.indices, len(entries), data)]

    def unpack(
        self: Quantize,
        places: Sequence[Tensor],
        values: Tensor,
        plan: Plan,
        key: RandomKey | None = None,
    ) -> tuple[Entries, Tensor]:
        """The entries, and how many are in every group.

        Raises:
            ValueError: a position lies outside every group, or the bytes are bad.
        """
        (indices,) = places
        counts = plan.counts(indices)
        if indices is not None and int(counts.sum()) != len(indices):
            raise ValueError("positions: outside every group")
        return Entries(indices, self.decode(values, counts, None, key)), counts
