"""Every rank reduces the part of the message that it owns, and sends back what came of it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.exchange import entries
from ddp_compress.exchange.channel import Channel
from ddp_compress.exchange.comm import Work
from ddp_compress.exchange.exact import reduce_exact
from ddp_compress.layout import Plan, Sparse, add_entries
from ddp_compress.message import Chunk, Delivery, Message
from ddp_compress.quantize import Values
from ddp_compress.shards import Shards, shards

if TYPE_CHECKING:
    from ddp_compress.recipe import Recipe, Tensors

Reply = Literal["reselect", "union"]


@dataclass(frozen=True)
class Sharded:
    """Send every rank the entries that it owns; it averages them and answers all.

    Traffic does not grow with W times K as in `AllGather`. What comes back is one of:

    * ``"reselect"``: the owner compresses the mean again, with the recipe's own selection,
      quantizer and density. A rank sends and receives about 2 K entries at any W. The second
      compression loses nothing for good, but late: what it leaves out stays in a second residual at
      the owner.
    * ``"union"``: all that anybody sent, as fp32. Nothing is compressed twice, so the result is
      that of `AllGather`; but the union may grow to W K entries, of which each rank receives all.

    Args:
        reply: see above.

    Raises:
        ValueError: another reply.

    Source: Sattler et al., Robust and Communication-Efficient Federated Learning from Non-IID Data
    (2019), Alg. 2, for the second residual; here owners take the place of its server.

    Example:
        >>> Sharded().tensors
        {'owner_residual': None}
    """

    reply: Reply = "reselect"

    many_phase: ClassVar[bool] = True
    rotates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.reply not in ("reselect", "union"):
            raise ValueError(f"reply must be 'reselect' or 'union', got {self.reply!r}")

    @property
    def tensors(self) -> Tensors:
        """The owner's second residual, zero where this rank is not the owner."""
        return {"owner_residual": None} if self.reply == "reselect" else {}

    def run(
        self, message: Message, recipe: Recipe, channel: Channel
    ) -> Generator[Work, None, list[Delivery] | None]:
        """See `recipe.Exchange.run`."""
        part = _Part(message, recipe, shards(message.plan, channel.world_size), channel)
        arrived = yield from channel.route(part.for_owners)
        if arrived is None:
            return None
        answer = part.reselect if self.reply == "reselect" else part.unite
        replies = yield from channel.share(lambda: answer(arrived))
        if replies is None:
            return None
        exact = yield from reduce_exact(message, channel)
        decode = entries.decode if self.reply == "reselect" else entries.decode_counted
        of_reply = recipe if self.reply == "reselect" else _in_full(recipe)
        received = part.cut.join(
            [
                decode(body, plan, of_reply, message)
                for body, plan in zip(replies, part.cut.plans, strict=True)
            ]
        )
        return [Delivery(part.sent, received, 1.0, writes=part.writes), *exact]


class _Part:
    """One rank's part in one message: as a sender, then as the owner of a shard."""

    def __init__(self, message: Message, recipe: Recipe, cut: Shards, channel: Channel) -> None:
        self._message = message
        self._recipe = recipe
        self._stats = channel.stats
        self._rank = channel.rank
        self._dtype = message.memory_dtype
        self._plan = cut.plans[channel.rank]
        self.cut = cut
        self.sent: list[Sparse] = []
        self.writes: dict[str, Sparse] = {}

    def for_owners(self) -> list[Tensor] | None:
        """A body for every owner; None where a gradient is not finite."""
        selection = entries.select(self._message, self._recipe)
        if not selection.finite:
            return None
        bodies = [
            entries.encode_counted(part, plan, self._recipe, self._stats)
            for part, plan in zip(self.cut.split(selection.entries), self.cut.plans, strict=True)
        ]
        self.sent = self.cut.join(
            [self._decode(body, plan) for body, plan in zip(bodies, self.cut.plans, strict=True)]
        )
        return bodies

    def unite(self, arrived: list[Tensor]) -> Tensor:
        """The mean of what came, wherever anything came."""
        mean, union = self._mean(arrived)
        entries_of_union = Sparse(union, mean[union.long()])
        recipe = _in_full(self._recipe)
        return entries.encode_counted(entries_of_union, self._plan, recipe, self._stats)

    def reselect(self, arrived: list[Tensor]) -> Tensor | None:
        """The mean and the second residual, compressed again; None where it is not finite."""
        mean, union = self._mean(arrived)
        second = self.cut.take((kept["owner_residual"] for kept in self._message.kept), self._rank)
        numels = [layout.numel for layout in self._plan.layouts]
        # Perhaps no rank used the parameter: then DDP would throw away what is sent back.
        may_be_idle = self._message.idle is not None
        chunks = [
            Chunk(grad, layout, {"residual": residual}, may_be_idle)
            for grad, layout, residual in zip(
                mean.split(numels), self._plan.layouts, second.split(numels), strict=True
            )
        ]
        owned = Message(chunks, self._plan, self._message.step)
        selection = self._recipe.select(owned)
        if not selection.finite:
            return None
        chosen = selection.entries
        chosen = Sparse(chosen.indices, self._message.clamped(chosen.values))
        reply = entries.encode(chosen, self._plan, self._recipe, self._stats)
        second.add_(mean)
        decoded = entries.decode(reply, self._plan, self._recipe, self._message)
        add_entries(second, 0, [decoded], -1.0)
        touched = union if chosen.indices is None else ops.tally([union, chosen.indices])[0]
        left = Sparse(touched, second[touched.long()])
        self.writes["owner_residual"] = self.cut.widen(left, self._rank)
        return reply

    def _mean(self, arrived: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The mean of what came for this rank's shard [n], and where anything came [U]."""
        given = [self._decode(body, self._plan) for body in arrived]
        like = self._message.grads[0]
        mean = like.new_zeros(self._plan.numel, dtype=self._dtype)
        add_entries(mean, 0, given, 1.0 / len(arrived))
        positions = [each.indices for each in given if each.indices is not None]
        if positions:
            return mean, ops.tally(positions)[0]
        return mean, torch.arange(self._plan.numel, dtype=torch.int32, device=mean.device)

    def _decode(self, body: Tensor, plan: Plan) -> Sparse:
        return entries.decode_counted(body, plan, self._recipe, self._message)


def _in_full(recipe: Recipe) -> Recipe:
    """The recipe with values as they are: its quantizer is made for what one rank sends."""
    return replace(recipe, quantize=Values())
