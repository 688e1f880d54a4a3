"""Take one exchange for few ranks, another for many."""

from dataclasses import dataclass
from typing import ClassVar

from ddp_compress.checks import check_count, check_part
from ddp_compress.message.delivery import Deliveries
from ddp_compress.message.message import Message
from ddp_compress.recipe import Exchange, Recipe, Tensors
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


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

    def __post_init__(self) -> None:
        check_part("few", self.few, Exchange, slot="exchange")
        check_part("many", self.many, Exchange, slot="exchange")
        check_count("limit", self.limit, least=1)

    @property
    def tensors(self) -> Tensors:
        """What either keeps."""
        return {**self.few.tensors, **self.many.tensors}

    def check(self, recipe: Recipe) -> None:
        """Both must take the recipe's parts: the number of ranks is not known yet."""
        self.few.check(recipe)
        self.many.check(recipe)

    def run(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Deliveries]:
        """See `recipe.Exchange.run`."""
        chosen = self.few if channel.world_size <= self.limit else self.many
        return (yield from chosen.run(message, recipe, channel))
