"""Owners average what came, and send back all of it."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ddp_compress.body import Listed
from ddp_compress.exchange.bodies import Bodies
from ddp_compress.exchange.owner import Owner
from ddp_compress.message.delivery import Deliveries
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message
from ddp_compress.quantize import Values
from ddp_compress.recipe import Recipe, Tensors
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


@dataclass(frozen=True)
class Union:
    """Send every rank the entries that it owns; it averages them, and answers with all that came.

    The answer is in fp32, so nothing is compressed twice and the result is that of `AllGather`.
    Entries that several ranks sent come back once; but the union may grow to W K entries, of which
    each rank receives all.

    Example:
        >>> Union()
        Union()
    """

    many_phase: ClassVar[bool] = True
    has_large_sender: ClassVar[bool] = False
    tensors: ClassVar[Tensors] = {}

    def check(self, recipe: Recipe) -> None:
        """Whatever is selected has an owner."""

    def run(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Deliveries]:
        """See `recipe.Exchange.run`."""
        return (yield from _Uniting(message, recipe, channel).run())


class _Uniting(Owner):
    """An owner that answers with all that came."""

    def __init__(self, message: Message, recipe: Recipe, channel: Channel) -> None:
        super().__init__(message, recipe, channel)
        # The recipe's quantizer is made for what one rank sends.
        plain = replace(recipe, quantize=Values(), body=Listed())
        self._replies = Bodies(message, plain, channel.stats, channel.rank, reply=True)

    def answer(self, mean: Tensor, touched: Tensor) -> Tensor:
        return self._replies.encode_counted(Entries(touched, mean[touched.long()]), self.plan)

    def received(self, replies: list[Tensor]) -> list[Entries]:
        both = zip(replies, self.shards.plans, strict=True)
        return self.shards.join([self._replies.decode_counted(*each) for each in both])
