"""Owners average what came, and compress the mean again."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ddp_compress import ops
from ddp_compress.exchange.bodies import Bodies
from ddp_compress.exchange.owner import Owner, all_of
from ddp_compress.memory import NoMemory, Residual
from ddp_compress.message.arena import Arena
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.delivery import Deliveries
from ddp_compress.message.entries import Entries, add_entries
from ddp_compress.message.message import Message
from ddp_compress.message.shards import Shards
from ddp_compress.recipe import Recipe, Tensors
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


@dataclass(frozen=True)
class Sharded:
    """Send every rank the entries that it owns; it averages them and answers, compressed again.

    A rank sends and receives about 2 K entries at any W, where `AllGather` receives W K. The second
    compression loses nothing for good, but late: what it leaves out stays in a second residual at
    the owner.

    Args:
        down: the recipe whose selection, body, quantizer, codec and density the mean is compressed
            with; there is a second residual where its memory keeps one. None for the recipe itself,
            and a second residual.

    Raises:
        TypeError: no recipe.
        ValueError: a recipe that keeps more than a residual or has a schedule.

    Source: Sattler et al., Robust and Communication-Efficient Federated Learning from Non-IID Data
    (2019), Alg. 2, for the second residual; here owners take the place of its server.

    Example:
        >>> Sharded().tensors
        {'owner_residual': None}
    """

    down: Recipe | None = None

    many_phase: ClassVar[bool] = True
    has_large_sender: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.down is None:
            return
        if not isinstance(self.down, Recipe):
            raise TypeError(f"down must be a recipe or None, got {self.down!r}")
        kept = {*self.down.memory.tensors, *self.down.select.tensors}
        if not kept <= {"residual"}:
            raise ValueError(
                f"down must be a recipe that keeps no more than a residual; {self.down.name} keeps "
                f"{', '.join(sorted(kept))}"
            )
        if callable(self.down.select.density):
            raise ValueError("down must be a recipe of a constant density, got a schedule")

    @property
    def tensors(self) -> Tensors:
        """The owner's second residual, zero where this rank is not the owner."""
        keeps = self.down is None or self.down.memory.tensors
        return {"owner_residual": None} if keeps else {}

    def check(self, recipe: Recipe) -> None:
        """Raise a `ValueError` where owners cannot select as ranks do."""
        if self.down is None and recipe.select.tensors:
            raise ValueError(
                f"exchange={self!r} selects again at the owners, and select={recipe.select!r} "
                f"keeps the {' and '.join(recipe.select.tensors)} of a rank's own entries: take "
                "exchange.Union(), or Sharded(down=recipes.topk(density))"
            )

    def run(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Deliveries]:
        """See `recipe.Exchange.run`."""
        return (yield from _Reselecting(message, recipe, self.down, channel).run())


class _Reselecting(Owner):
    """An owner that compresses the mean again."""

    def __init__(
        self, message: Message, recipe: Recipe, down: Recipe | None, channel: Channel
    ) -> None:
        super().__init__(message, recipe, channel)
        self._down, self._answers = down or recipe, self.shards
        if down is not None:
            density, scope = down.select.density, down.select.scope
            assert not callable(density)
            plan = replace(message.plan, scope=scope, density=density)
            self._answers = Shards(plan, channel.world_size)
        self._replies = Bodies(message, self._down, channel.stats, channel.rank, reply=True)

    def answer(self, mean: Tensor, touched: Tensor) -> Tensor | None:
        second, plan = self._second_residual(), self._answers.plans[self.channel.rank]
        selection = self._down.select(self._owned(mean, second))
        if not selection.finite:
            return None
        chosen = selection.entries
        # As the gradients' dtype asks for, which the mean's is not.
        chosen = Entries(chosen.indices, self.message.clamped(chosen.values))
        reply = self._replies.encode(chosen, plan)
        if second is not None:
            second.add_(mean)
            add_entries(second, 0, [self._replies.decode(reply, plan)], -1.0)
            changed = (
                all_of(mean) if chosen.indices is None else ops.tally([touched, chosen.indices])[0]
            )
            left = Entries(changed, second[changed.long()])
            self.writes["owner_residual"] = self.shards.widen(left, self.channel.rank)
        return reply

    def received(self, replies: list[Tensor]) -> list[Entries]:
        both = zip(replies, self._answers.plans, strict=True)
        return self._answers.join([self._replies.decode(*each) for each in both])

    def _second_residual(self) -> Tensor | None:
        """This rank's shard [n] of it, a copy; None where none is kept."""
        kept = [c.kept["owner_residual"] for c in self.message.chunks if "owner_residual" in c.kept]
        return self.shards.take(kept, self.channel.rank) if kept else None

    def _owned(self, mean: Tensor, second: Tensor | None) -> Message:
        """The owner's shard as a message of its own, with the second residual for memory."""
        plan = self._answers.plans[self.channel.rank]
        numels = [layout.numel for layout in plan.layouts]
        # Perhaps no rank used the parameter: then DDP would throw away what is sent back.
        may_be_unused = self.message.unused is not None
        chunks = [
            Chunk(grad, layout, may_be_unused=may_be_unused)
            for grad, layout in zip(mean.split(numels), plan.layouts, strict=True)
        ]
        if second is None:
            return Message(chunks, plan, self.message.step, NoMemory())
        for chunk, residual in zip(chunks, second.split(numels), strict=True):
            chunk.kept = Arena({"residual": residual})
        return Message(chunks, plan, self.message.step, Residual())
