"""Every rank sends its own selection to every other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddp_compress.checks import named
from ddp_compress.exchange.bodies import Bodies
from ddp_compress.exchange.fused import FusedLists, can_fuse
from ddp_compress.exchange.uncompressed import split_uncompressed
from ddp_compress.message.delivery import Deliveries, Delivery
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message
from ddp_compress.recipe import Recipe, Tensors
from ddp_compress.stats import Stats
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


@dataclass(frozen=True)
class AllGather:
    """Select, quantize, encode, gather; decode every rank in rank order and take the mean.

    One collective a message, once sizes are steady, and no error but the compression's own. A rank
    sends one message and receives W - 1, so traffic grows with W. The body is: uncompressed values
    in the gradient's dtype, positions, values.

    Example:
        >>> AllGather()
        AllGather()
    """

    many_phase: ClassVar[bool] = False
    has_large_sender: ClassVar[bool] = False
    tensors: ClassVar[Tensors] = {}

    def check(self, recipe: Recipe) -> None:
        """Whatever is selected can be gathered."""

    def run(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Deliveries]:
        """See `recipe.Exchange.run`."""
        kind = FusedLists if can_fuse(recipe) else SeparateLists
        lists = kind(message, recipe, channel.stats, channel.rank)
        every = yield from channel.share(lists.encode)
        if every is None:
            return None
        rest, uncompressed = split_uncompressed(every, message)
        selected = lists.decode(rest)
        here, scale = slice(channel.rank, channel.rank + 1), 1.0 / channel.world_size
        delivery = Delivery(selected[here], selected, scale, False, lists.writes, lists.confirm)
        deliveries = [delivery]
        if uncompressed:
            deliveries.append(Delivery(uncompressed[here], uncompressed, scale, uncompressed=True))
        return deliveries


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
        message = self._message
        selection = message.select(self._select)
        if not selection.finite:
            return None
        self.writes.update(selection.writes)
        selected = self._bodies.encode(selection.entries, message.plan)
        if not len(message.plan.uncompressed):
            return selected
        uncompressed = message.clamped(message.uncompressed()).to(message.dtype)
        self._stats.nonzeros += len(uncompressed)
        return torch.cat([uncompressed.view(torch.uint8), selected])

    def decode(self, every: Sequence[Tensor]) -> list[Entries]:
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
