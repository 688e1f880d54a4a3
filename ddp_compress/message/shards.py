"""A message cut into W parts, of which every rank owns one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import Layout
from ddp_compress.message.plan import Plan, Tables, tables_for
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of

T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """Every parameter is cut into W ranges; rank r owns the r-th of each.

    So what a rank owns does not depend on the order in which parameters come, which DDP changes,
    and large tensors do not all fall to one rank. Positions in a shard count through its ranges.
    Nobody owns uncompressed parameters.

    Args:
        plan: of the whole message.
        world_size: W.

    Example:
        >>> plan = Plan((Layout(("weight", "bias"), (6, 2)),), "tensor", density=0.5)
        >>> shards = Shards(plan, world_size=2)
        >>> [shard.numel for shard in shards.plans]
        [4, 4]
        >>> positions = torch.tensor([1, 4, 7], dtype=torch.int32)
        >>> parts = shards.split(Entries(positions, torch.ones(3)))
        >>> [part.indices.tolist() for part in parts]
        [[1], [1, 3]]
        >>> [part.indices.tolist() for part in shards.join(parts)]
        [[1], [4, 7]]
    """

    plan: Plan
    world_size: int

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        """What every shard may hold, [W]."""
        return tuple(part.at(self.plan.density) for part in self._cuts.parts)

    @property
    def offsets(self) -> Tensor:
        """Where every rank's range begins in its parameter, [W, P] int64."""
        return self._cuts.offsets

    def split(self, entries: Entries) -> list[Entries]:
        """The entries of every shard, as positions in it."""
        if entries.indices is None:
            pieces = entries.values.split(self._cuts.pieces)
            return [Entries(None, torch.cat(self._of(rank, pieces))) for rank in self._ranks]
        edges, shifts = (
            to_device_of(t, entries.indices) for t in (self._cuts.edges, self._cuts.shifts)
        )
        piece = torch.searchsorted(edges, entries.indices.long(), right=True) - 1
        owner = piece % self._owners
        local = (entries.indices + shifts[piece]).int()
        mine = [(owner == rank).nonzero().flatten() for rank in self._ranks]
        return [Entries(local[here], entries.values[here]) for here in mine]

    def join(self, parts: Sequence[Entries]) -> list[Entries]:
        """Entries of every shard as positions in the message: W ascending lists, or one dense."""
        if parts[0].indices is not None:
            return [self.widen(part, rank) for rank, part in enumerate(parts)]
        whole = parts[0].values.new_zeros(self.plan.numel)
        places = whole.split(self._cuts.pieces)
        for rank, part in enumerate(parts):
            lengths = self._of(rank, self._cuts.pieces)
            for place, piece in zip(
                self._of(rank, places), part.values.split(lengths), strict=True
            ):
                place.copy_(piece)
        positions = self.plan.all_positions
        if positions is None:
            return [Entries(None, whole)]
        positions = to_device_of(positions, whole)
        return [Entries(positions, whole[positions.long()])]

    def widen(self, part: Entries, rank: int) -> Entries:
        """Entries of one shard as positions in the message."""
        assert part.indices is not None
        bounds = to_device_of(self.plans[rank].bounds, part.indices)
        param = torch.searchsorted(bounds, part.indices.long(), right=True) - 1
        shifts = to_device_of(self._cuts.shifts[rank :: self._owners], part.indices)
        return Entries((part.indices - shifts[param]).int(), part.values)

    def take(self, flat: Iterable[Tensor], rank: int) -> Tensor:
        """One shard of the message's flat tensors, given chunk by chunk."""
        pieces, at = [], 0
        for layout, tensor in zip(self.plan.layouts, flat, strict=True):
            count = len(layout.names) * self._owners
            pieces += self._of(rank, tensor.split(self._cuts.pieces[at : at + count]))
            at += count
        return torch.cat(pieces)

    def _of(self, rank: int, pieces: Sequence[T]) -> list[T]:
        return list(pieces[rank :: self._owners])

    @property
    def _ranks(self) -> range:
        return range(self.world_size)

    @property
    def _owners(self) -> int:
        return self.world_size + 1  # the last is nobody

    @cached_property
    def _cuts(self) -> Cuts:
        return cuts_of(self.plan.tables, self.world_size)


@dataclass(frozen=True)
class Cuts:
    """What `Shards` must know that does not depend on the density.

    Args:
        tables: of the whole message.
        world_size: W.
    """

    tables: Tables
    world_size: int

    @cached_property
    def parts(self) -> tuple[Tables, ...]:
        """Every shard's tables, [W]."""
        return tuple(self._part(rank) for rank in range(self.world_size))

    @cached_property
    def offsets(self) -> Tensor:
        """Where every rank's range begins in its parameter, [W, P] int64."""
        return (self.lengths.cumsum(1) - self.lengths)[:, :-1].T.contiguous()

    @cached_property
    def lengths(self) -> Tensor:
        """Elements of every parameter that each rank owns, and that nobody does: [P, W + 1]."""
        sizes = self.tables.bounds.diff()
        uncompressed = (self.tables.groups < 0) * sizes
        owned = cuts(sizes - uncompressed, self.world_size).diff(dim=1)
        return torch.cat([owned, uncompressed[:, None]], dim=1)

    @cached_property
    def pieces(self) -> list[int]:
        """The same, in the message's order."""
        pieces: list[int] = self.lengths.flatten().tolist()
        return pieces

    @cached_property
    def edges(self) -> Tensor:
        """Where every piece begins in the message, [P (W + 1)]."""
        lengths = self.lengths.flatten()
        return lengths.cumsum(0) - lengths

    @cached_property
    def shifts(self) -> Tensor:
        """What turns a piece's positions in the message into those of its shard."""
        local = self.lengths.cumsum(0) - self.lengths
        return local.flatten() - self.edges

    def _part(self, rank: int) -> Tables:
        lengths = iter(self.lengths[:, rank].tolist())
        layouts = tuple(
            Layout(
                tuple(f"{name}, part {rank}" for name in layout.names),
                tuple(next(lengths) for _ in layout.names),
            )
            for layout in self.tables.layouts
        )
        return tables_for(layouts, self.tables.scope)


@lru_cache(maxsize=256)
def cuts_of(tables: Tables, world_size: int) -> Cuts:
    """The `Cuts` for these arguments, kept between steps because all of them repeat it."""
    return Cuts(tables, world_size)


def cuts(sizes: Tensor, world_size: int) -> Tensor:
    """Where the W ranges of every parameter begin and end, [P, W + 1] int64.

    Example:
        >>> cuts(torch.tensor([6, 2]), world_size=3)
        tensor([[0, 2, 4, 6],
                [0, 0, 1, 2]])
    """
    return sizes[:, None] * host.arange(world_size + 1) // world_size
