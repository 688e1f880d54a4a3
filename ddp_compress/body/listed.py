"""One list of positions, then the values at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor

from ddp_compress.body.entry_list import EntryList
from ddp_compress.message.context import Context
from ddp_compress.message.entries import Entries
from ddp_compress.message.plan import Plan
from ddp_compress.message.random_key import RandomKey
from ddp_compress.message.universe import Universe

if TYPE_CHECKING:
    from ddp_compress.recipe import Recipe


@dataclass(frozen=True)
class Listed:
    """All entries in one list.

    Example:
        >>> import torch
        >>> from ddp_compress.message.layout import Layout
        >>> from ddp_compress.message.plan import Plan
        >>> from ddp_compress.message.random_key import RandomKey
        >>> from ddp_compress.recipes import sbc
        >>> plan = Plan((Layout(("weight",), (8,)),), "tensor", density=0.25)
        >>> entries = Entries(torch.tensor([3, 5], dtype=torch.int32), torch.tensor([1.0, 2.0]))
        >>> how = plan, plan, sbc(0.25), RandomKey(plan.group_names, step=0, rank=0)
        >>> (part,) = Listed().encode(entries, *how)
        >>> found, counts = Listed().decode(torch.cat([part.positions, part.values]), *how)
        >>> found.indices.tolist(), found.values.tolist(), counts.tolist()
        ([3, 5], [1.5, 1.5], [2])
    """

    def check(self, recipe: Recipe) -> None:
        """Any codec and any quantizer will do."""

    def size(self, plan: Plan, recipe: Recipe) -> int:
        """The most bytes of positions and of values."""
        return recipe.codec.size(plan) + recipe.quantize.size(plan.ks)

    def encode(
        self, entries: Entries, plan: Plan, universe: Universe, recipe: Recipe, key: RandomKey
    ) -> list[EntryList]:
        """The list."""
        context = Context(plan.counts(entries.indices), key)
        # A codec for entries of all positions is given none.
        positions = recipe.codec.encode(cast(Tensor, entries.indices), universe)
        values = recipe.quantize.encode(entries.values, context)
        return [EntryList("individual", len(entries), positions, values)]

    def decode(
        self, data: Tensor, plan: Plan, universe: Universe, recipe: Recipe, key: RandomKey
    ) -> tuple[Entries, Tensor]:
        """The entries, and how many are in every group.

        Raises:
            ValueError: a position lies outside every group, or the bytes are bad.
        """
        indices, used = recipe.codec.decode(data, universe)
        counts = plan.counts(indices)
        if indices is not None and int(counts.sum()) != len(indices):
            raise ValueError("positions: outside every group")
        return Entries(indices, recipe.quantize.decode(data[used:], Context(counts, key))), counts
