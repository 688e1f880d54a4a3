"""The commonest lists in few kernels, those of all ranks at once."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.body import Listed
from ddp_compress.checks import named
from ddp_compress.codec import EliasFano
from ddp_compress.exchange.bodies import Bodies
from ddp_compress.message.context import Context
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message
from ddp_compress.ops import host
from ddp_compress.ops.devices import OnItsWay, at_once_on_device, at_once_on_host
from ddp_compress.quantize import Means, Values
from ddp_compress.recipe import Recipe
from ddp_compress.select import HeavierSide, TopK
from ddp_compress.select.top_k import Slots
from ddp_compress.stats import Stats

NO_EDGE = host.tensor([0], dtype=torch.int64)  # no position lies before the first group


def can_fuse(recipe: Recipe) -> bool:
    """Whether these kernels write and read a recipe's lists: parts as they are, none of its own.

    Example:
        >>> from ddp_compress import recipes
        >>> can_fuse(recipes.sbc()), can_fuse(recipes.sbc(codec="golomb"))
        (True, False)
    """
    return (
        type(recipe.select) in (TopK, HeavierSide)
        and type(recipe.body) is Listed
        and type(recipe.codec) is EliasFano
        and type(recipe.quantize) in (Means, Values)
    )


class FusedLists:
    """What ranks send of a message; the bytes are those of `Bodies`.

    Nothing is cut to its length before all is computed, so a GPU's host waits once for the list
    that it sends. Of those that it has received it hears when the step has been written: what is
    bad takes that back.

    Args:
        message: on its way.
        recipe: one that `can_fuse`.
        stats: where to count.
        rank: this one.
    """

    writes: ClassVar[Mapping[str, Entries]] = {}

    def __init__(self, message: Message, recipe: Recipe, stats: Stats, rank: int) -> None:
        assert isinstance(recipe.select, TopK)
        self._message = message
        self._select = recipe.select
        self._recipe = recipe
        self._stats = stats
        self._rank = rank
        # None for means.
        self._dtype = recipe.quantize.dtype if isinstance(recipe.quantize, Values) else None

    def encode(self) -> Tensor | None:
        """What this rank sends, on the host; None where something is not finite."""
        message, recipe, plan = self._message, self._recipe, self._message.plan
        found = self._select.slots(message)
        positions, values = recipe.codec.encode(found.indices, plan), self._values(found)
        finite, uncompressed = found.finite, []
        if len(plan.uncompressed):
            accumulated = message.uncompressed()
            finite = finite & accumulated.isfinite().all()
            uncompressed = [message.clamped(accumulated).to(message.dtype).view(torch.uint8)]
        parts = [found.counts, finite, positions, values, *uncompressed]
        counts, finite, positions, values, *uncompressed = at_once_on_host(parts)
        if not finite:
            return None
        count = int(counts.sum())
        if self._dtype is not None:
            values = values[: count * self._dtype.itemsize]
        self._stats.entry_list("individual", count, 8 * len(positions), 8 * len(values))
        self._stats.nonzeros += len(plan.uncompressed)
        return torch.cat([*uncompressed, positions, values])

    def _values(self, found: Slots) -> Tensor:
        """What they are worth, as bytes of all slots."""
        message = self._message
        if self._dtype is None and len(found.means) and message.limit is None:
            return found.means.view(torch.uint8)
        values = message.clamped(found.values)
        return self._recipe.quantize.encode(values, Context(found.counts))

    def decode(self, every: Sequence[Tensor]) -> list[Entries]:
        """What every rank has selected, of bodies without uncompressed parameters.

        Raises:
            ValueError: bytes do not fit the plan; on a GPU `confirm` raises it.
        """
        message, plan = self._message, self._message.plan
        bodies = at_once_on_device(every, message.device)
        ends = plan.tables.on(message.device).group_ends
        indices, values, words = ops.entries_decode(bodies, ends, plan.numel, plan.k, self._dtype)
        values = message.clamped(values.to(message.memory_dtype))
        self._received, self._words = every, OnItsWay(words)
        lists = zip(indices, values, strict=True)
        if words.is_cuda:
            return [Entries(own, worth) for own, worth in lists]
        counts = self._counts()
        return [Entries(a[:n], b[:n]) for (a, b), n in zip(lists, counts, strict=True)]

    def confirm(self) -> None:
        """See `Delivery`."""
        if self._message.device.type == "cuda":
            self._counts()

    def _counts(self) -> list[int]:
        """How many entries every rank has sent."""
        words, plan = self._words.get(), self._message.plan
        bad = words[:, 0] < 0
        if len(plan.ks) > 1:  # the slots of a list are no more than one group may send
            edges = words.index_fill(1, NO_EDGE, 0)
            bad |= (edges.diff(dim=1) > plan.ks).any(1)
        if bad.any():
            self._refuse(int(bad.nonzero()[0]))
        counts: list[int] = words[:, -1].tolist() if len(plan.ks) else [0] * len(words)
        return counts

    def _refuse(self, rank: int) -> None:
        """Say what is wrong with a list, as its parts do by themselves."""
        bodies = Bodies(self._message, self._recipe, self._stats, self._rank)
        with named(f"rank {rank}"):
            bodies.decode(self._received[rank], self._message.plan)
            raise ValueError(f"damaged on its way to {self._message.device}")
