"""Every rank sends its own selection to every other."""

from dataclasses import dataclass
from typing import ClassVar

from ddp_compress.exchange.all_entries import AllEntries, can_add
from ddp_compress.exchange.fused import FusedLists, can_fuse
from ddp_compress.exchange.separate import SeparateLists
from ddp_compress.exchange.uncompressed import split_uncompressed
from ddp_compress.message.delivery import Deliveries, Delivery
from ddp_compress.message.message import Message
from ddp_compress.recipe import Recipe, Tensors
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
        lists = _kind(recipe)(message, recipe, channel.stats, channel.rank)
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


def _kind(recipe: Recipe) -> type[FusedLists | SeparateLists]:
    """The fastest way to write and read a recipe's messages."""
    if can_fuse(recipe):
        return FusedLists
    return AllEntries if can_add(recipe) else SeparateLists
