"""Every rank reduces the part of a message that it owns, and answers all."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.exchange.bodies import Bodies
from ddp_compress.exchange.uncompressed import reduce_uncompressed
from ddp_compress.message.delivery import Deliveries, Delivery
from ddp_compress.message.entries import Entries, add_entries
from ddp_compress.message.message import Message
from ddp_compress.message.shards import Shards
from ddp_compress.recipe import Recipe
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


class Owner(ABC):
    """One rank's part in a message: it sends to owners, then it is the owner of a shard itself.

    Args:
        message: on its way.
        recipe: how entries travel to their owners.
        channel: to the other ranks.
    """

    def __init__(self, message: Message, recipe: Recipe, channel: Channel) -> None:
        self.message = message
        self.channel = channel
        self.shards = Shards(message.plan, channel.world_size)
        self.plan = self.shards.plans[channel.rank]
        self.writes: dict[str, Entries] = {}
        self._recipe = recipe
        self._bodies = Bodies(message, recipe, channel.stats, channel.rank)
        self._sent: list[Entries] = []

    @abstractmethod
    def answer(self, mean: Tensor, touched: Tensor) -> Tensor | None:
        """The body of the reply to all; None where it is not finite.

        Args:
            mean: of what came for this rank's shard, [n].
            touched: where anything came, [U] int32, ascending.
        """

    @abstractmethod
    def received(self, replies: list[Tensor]) -> list[Entries]:
        """What the replies of all owners say."""

    def run(self) -> Phases[Deliveries]:
        """See `recipe.Exchange.run`."""
        arrived = yield from self.channel.route(self._for_owners)
        if arrived is None:
            return None
        replies = yield from self.channel.share(lambda: self.answer(*self._mean(arrived)))
        if replies is None:
            return None
        uncompressed = yield from reduce_uncompressed(self.message, self.channel)
        received = self.received(replies)
        return [Delivery(self._sent, received, 1.0, writes=self.writes), *uncompressed]

    def _for_owners(self) -> list[Tensor] | None:
        """A body for every owner; None where a gradient is not finite."""
        selection = self.message.select(self._recipe.select)
        if not selection.finite:
            return None
        self.writes.update(selection.writes)
        parts, plans = self.shards.split(selection.entries), self.shards.plans
        bodies = [self._bodies.encode_counted(*each) for each in zip(parts, plans, strict=True)]
        found = [self._bodies.decode_counted(*each) for each in zip(bodies, plans, strict=True)]
        self._sent = self.shards.join(found)
        return bodies

    def _mean(self, arrived: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See `answer`."""
        given = [self._bodies.decode_counted(body, self.plan) for body in arrived]
        message = self.message
        mean = torch.zeros(self.plan.numel, dtype=message.memory_dtype, device=message.device)
        add_entries(mean, 0, given, 1.0 / len(arrived))
        positions = [each.indices for each in given if each.indices is not None]
        return mean, ops.tally(positions)[0] if positions else all_of(mean)


def all_of(flat: Tensor) -> Tensor:
    """The positions of all elements of a flat tensor, int32.

    Example:
        >>> all_of(torch.zeros(3))
        tensor([0, 1, 2], dtype=torch.int32)
    """
    return torch.arange(len(flat), dtype=torch.int32, device=flat.device)
