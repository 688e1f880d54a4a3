"""One exchange for few ranks, another for many."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ddp_compress.message.message import Delivery, Message
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.comm import Work

if TYPE_CHECKING:
    from ddp_compress.recipe import Exchange, Recipe, Tensors


@dataclass(frozen=True)
class BySize:
    """``few`` up to ``limit`` ranks, ``many`` above.

    Example:
        >>> from ddp_compress.exchange import AllGather, Sharded
        >>> BySize(AllGather(), Sharded(), limit=4).tensors
        {'owner_residual': None}
    """

    few: Exchange
    many: Exchange
    limit: int

    many_phase: ClassVar[bool] = True
    has_large_sender: ClassVar[bool] = False

    @property
    def tensors(self) -> Tensors:
        """What either keeps."""
        return {**self.few.tensors, **self.many.tensors}

    def run(
        self, message: Message, recipe: Recipe, channel: Channel
    ) -> Generator[Work, None, list[Delivery] | None]:
        """See `recipe.Exchange.run`."""
        chosen = self.few if channel.world_size <= self.limit else self.many
        return (yield from chosen.run(message, recipe, channel))
