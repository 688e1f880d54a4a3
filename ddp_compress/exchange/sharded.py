"""Every rank reduces the part of the message that it owns, and sends back what came of it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.exchange import entries
from ddp_compress.exchange.uncompressed import reduce_uncompressed
from ddp_compress.message.entries import Entries, add_entries
from ddp_compress.message.message import Chunk, Delivery, Message
from ddp_compress.message.plan import Plan
from ddp_compress.message.random_key import RandomKey
from ddp_compress.message.shards import Shards
from ddp_compress.quantize import Values
from ddp_compress.recipe import Recipe
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.comm import Work

if TYPE_CHECKING:
    from ddp_compress.recipe import Tensors


@dataclass(frozen=True)
class Sharded:
    """Send every rank the entries that it owns; it averages them and answers all.

    Traffic does not grow with W times K as in `AllGather`. What comes back is one of:

    * ``"reselect"``: the owner compresses the mean again, with the recipe's own selection,
      quantizer and density. A rank sends and receives about 2 K entries at any W. The second
      compression loses nothing for good, but late: what it leaves out stays in a second residual at
      the owner.
    * a recipe: the owner compresses the mean again with its selection, quantizer, codec and
      density. There is a second residual where its memory keeps one.
    * ``"union"``: all that anybody sent, as fp32. Nothing is compressed twice, so the result is
      that of `AllGather`; but the union may grow to W K entries, of which each rank receives all.

    Args:
        down: see above.

    Raises:
        TypeError: no word and no recipe.
        ValueError: another word, or a recipe that keeps more than a residual or has a schedule.

    Source: Sattler et al., Robust and Communication-Efficient Federated Learning from Non-IID Data
    (2019), Alg. 2, for the second residual; here owners take the place of its server.

    Example:
        >>> Sharded().tensors
        {'owner_residual': None}
    """

    down: Recipe | Literal["reselect", "union"] = "reselect"

    many_phase: ClassVar[bool] = True
    has_large_sender: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.down, str):
            if self.down not in ("reselect", "union"):
                raise ValueError(f"down must be 'reselect', 'union' or a recipe, got {self.down!r}")
            return
        if not isinstance(self.down, Recipe):
            raise TypeError(f"down must be 'reselect', 'union' or a recipe, got {self.down!r}")
        parts = (self.down.memory, self.down.select, self.down.quantize)
        kept = {name for part in parts for name in part.tensors}
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
        if isinstance(self.down, str):
            return {"owner_residual": None} if self.down == "reselect" else {}
        return {"owner_residual": None} if self.down.memory.tensors else {}

    def run(
        self, message: Message, recipe: Recipe, channel: Channel
    ) -> Generator[Work, None, list[Delivery] | None]:
        """See `recipe.Exchange.run`."""
        part = _Part(message, recipe, self.down, channel)
        arrived = yield from channel.route(part.for_owners)
        if arrived is None:
            return None
        answer = part.unite if self.down == "union" else part.reselect
        replies = yield from channel.share(lambda: answer(arrived))
        if replies is None:
            return None
        uncompressed = yield from reduce_uncompressed(message, channel)
        return [Delivery(part.sent, part.received(replies), 1.0, writes=part.writes), *uncompressed]


class _Part:
    """One rank's part in one message: as a sender, then as the owner of a shard."""

    def __init__(
        self,
        message: Message,
        recipe: Recipe,
        down: Recipe | Literal["reselect", "union"],
        channel: Channel,
    ) -> None:
        self._message = message
        self._recipe = recipe
        self._stats = channel.stats
        self._rank = channel.rank
        self._cut = Shards(message.plan, channel.world_size)
        self._plan = self._cut.plans[channel.rank]
        self._union = down == "union"
        if isinstance(down, str):
            # The quantizer is made for what one rank sends: a union comes as it is.
            self._down = replace(recipe, quantize=Values()) if self._union else recipe
            self._answers = self._cut
        else:
            self._down = down
            density, scope = down.select.density, down.select.scope
            assert not callable(density)
            plan = replace(message.plan, scope=scope, density=density)
            self._answers = Shards(plan, channel.world_size)
        self.sent: list[Entries] = []
        self.writes: dict[str, Entries] = {}

    def for_owners(self) -> list[Tensor] | None:
        """A body for every owner; None where a gradient is not finite."""
        selection = entries.select(self._message, self._recipe)
        if not selection.finite:
            return None
        plans = self._cut.plans
        bodies = [
            entries.encode_counted(part, plan, self._recipe, self._stats, self._draw(plan))
            for part, plan in zip(self._cut.split(selection.entries), plans, strict=True)
        ]
        self.sent = self._cut.join(
            [self._decode(body, plan) for body, plan in zip(bodies, plans, strict=True)]
        )
        return bodies

    def unite(self, arrived: list[Tensor]) -> Tensor:
        """The mean of what came, wherever anything came."""
        mean, union = self._mean(arrived)
        entries_of_union = Entries(union, mean[union.long()])
        key = self._draw(self._plan, reply=True)
        return entries.encode_counted(entries_of_union, self._plan, self._down, self._stats, key)

    def reselect(self, arrived: list[Tensor]) -> Tensor | None:
        """The mean and the second residual, compressed again; None where it is not finite."""
        mean, union = self._mean(arrived)
        second = self._second_residual()
        plan = self._answers.plans[self._rank]
        numels = [layout.numel for layout in plan.layouts]
        # Perhaps no rank used the parameter: then DDP would throw away what is sent back.
        may_be_unused = self._message.unused is not None
        chunks = [
            Chunk(grad, layout, may_be_unused=may_be_unused)
            for grad, layout in zip(mean.split(numels), plan.layouts, strict=True)
        ]
        if second is not None:
            for chunk, residual in zip(chunks, second.split(numels), strict=True):
                chunk.kept["residual"] = residual
        owned = Message(chunks, plan, self._message.step)
        selection = self._down.select(owned)
        if not selection.finite:
            return None
        chosen = selection.entries
        chosen = Entries(chosen.indices, self._message.clamped(chosen.values))
        key = self._draw(plan, reply=True)
        reply = entries.encode(chosen, plan, self._down, self._stats, key)
        if second is None:
            return reply
        second.add_(mean)
        decoded = entries.decode(reply, plan, self._down, self._message, key)
        add_entries(second, 0, [decoded], -1.0)
        touched = _all_of(mean) if chosen.indices is None else ops.tally([union, chosen.indices])[0]
        left = Entries(touched, second[touched.long()])
        self.writes["owner_residual"] = self._cut.widen(left, self._rank)
        return reply

    def received(self, replies: list[Tensor]) -> list[Entries]:
        """What all owners answered."""
        decode = entries.decode_counted if self._union else entries.decode
        return self._answers.join(
            [
                decode(body, plan, self._down, self._message, self._draw(plan, reply=True))
                for body, plan in zip(replies, self._answers.plans, strict=True)
            ]
        )

    def _second_residual(self) -> Tensor | None:
        """This rank's shard [n] of it, a copy; None where none is kept."""
        kept = [each["owner_residual"] for each in self._message.kept if "owner_residual" in each]
        return self._cut.take(kept, self._rank) if kept else None

    def _mean(self, arrived: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The mean of what came for this rank's shard [n], and where anything came [U]."""
        given = [self._decode(body, self._plan) for body in arrived]
        like = self._message.grads[0]
        mean = like.new_zeros(self._plan.numel, dtype=self._message.memory_dtype)
        add_entries(mean, 0, given, 1.0 / len(arrived))
        positions = [each.indices for each in given if each.indices is not None]
        if positions:
            return mean, ops.tally(positions)[0]
        return mean, _all_of(mean)

    def _decode(self, body: Tensor, plan: Plan) -> Entries:
        key = self._draw(plan)
        return entries.decode_counted(body, plan, self._recipe, self._message, key)

    def _draw(self, plan: Plan, reply: bool = False) -> RandomKey:
        return entries.random_key(plan, self._message, self._rank, reply)


def _all_of(flat: Tensor) -> Tensor:
    """The positions of all its elements, int32."""
    return torch.arange(len(flat), dtype=torch.int32, device=flat.device)
