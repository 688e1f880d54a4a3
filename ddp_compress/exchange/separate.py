"""Lists of entries one after another, by whatever parts a recipe has."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.checks import named
from ddp_compress.exchange.bodies import Bodies
from ddp_compress.message.entries import AnyEntries, Entries
from ddp_compress.message.message import Message
from ddp_compress.recipe import Recipe
from ddp_compress.stats import Stats


class SeparateLists:
    """What ranks send of a message, one after another, by whatever parts.

    Args:
        message: on its way.
        recipe: its parts.
        stats: where to count.
        rank: this one.

    Attributes:
        writes: see `Selection`.
    """

    def __init__(self, message: Message, recipe: Recipe, stats: Stats, rank: int) -> None:
        self.writes: dict[str, Entries] = {}
        self._message = message
        self._select = recipe.select
        self._stats = stats
        self._bodies = Bodies(message, recipe, stats, rank)

    def encode(self) -> Tensor | None:
        """What this rank sends; None where something is not finite."""
        selected, message = self._selected(), self._message
        if selected is None or not len(message.plan.uncompressed):
            return selected
        uncompressed = message.clamped(message.uncompressed()).to(message.dtype)
        self._stats.nonzeros += len(uncompressed)
        return torch.cat([uncompressed.view(torch.uint8), selected])

    def _selected(self) -> Tensor | None:
        """Without uncompressed parameters."""
        message = self._message
        selection = message.select(self._select)
        if not selection.finite:
            return None
        self.writes.update(selection.writes)
        return self._bodies.encode(selection.entries, message.plan)

    def decode(self, every: Sequence[Tensor]) -> Sequence[AnyEntries]:
        """What every rank has selected, of bodies without uncompressed parameters.

        Raises:
            ValueError: bytes do not fit the plan.
        """
        selected = []
        for rank, body in enumerate(every):
            with named(f"rank {rank}"):
                selected.append(self._bodies.decode(body, self._message.plan))
        return selected

    def confirm(self) -> None:
        """All was known to be good when it was decoded."""
