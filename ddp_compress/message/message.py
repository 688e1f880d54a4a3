"""A message: some flat gradients that travel together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.message.chunk import Chunk, memory_dtype
from ddp_compress.message.entries import Entries, spans
from ddp_compress.message.plan import Plan
from ddp_compress.message.selection import Selection
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of
from ddp_compress.ops.finite import all_finite_squares

if TYPE_CHECKING:
    from ddp_compress.recipe import Memory, Select


@dataclass(frozen=True)
class Message:
    """Chunks of one dtype that travel together, and what memory adds to them.

    Args:
        chunks: in order.
        plan: what the message may hold.
        step: of the state.
        memory: what is kept of unsent gradients.
        momentum: factor of the kept momentum in this step; 0 where none is kept.
    """

    chunks: Sequence[Chunk]
    plan: Plan
    step: int
    memory: Memory
    momentum: float = 0.0

    @cached_property
    def device(self) -> torch.device:
        """Where gradients, memory and entries are."""
        return self.chunks[0].grad.device

    @cached_property
    def dtype(self) -> torch.dtype:
        """The gradients' dtype."""
        return self.chunks[0].grad.dtype

    @cached_property
    def memory_dtype(self) -> torch.dtype:
        """The dtype of memory and of decoded values: fp32, or fp64 for fp64 gradients."""
        return memory_dtype(self.dtype)

    @cached_property
    def unused(self) -> Tensor | None:
        """Which of the P parameters are unused on this rank, bool; None where none is."""
        flags: list[bool] = []
        for chunk in self.chunks:
            flags += chunk.unused
        return host.tensor(flags, dtype=torch.bool) if any(flags) else None

    @cached_property
    def groups(self) -> Tensor:
        """The plan's groups [P], -1 also for parameters that are unused on this rank."""
        unused = self.unused
        return self.plan.groups if unused is None else self.plan.groups.masked_fill(unused, -1)

    def accumulated(self) -> Tensor:
        """The gradient with all that memory adds to it, [N], in memory's dtype; a copy."""
        return torch.cat(self.sums())

    def sums(self) -> list[Tensor]:
        """The same, chunk by chunk, to be read only: left where memory wants it."""
        for chunk in self.chunks:
            place = self.memory.places(chunk)
            if place.residual is not None:
                residual, momentum = self.memory.addends(chunk)
                assert residual is not None, "its place is not None either"
                before = residual, chunk.grad, momentum
                ops.accumulate(*before, self.momentum, place.residual, place.momentum)
            chunk.sums = place.residual
        return [self._accumulated(c) if c.sums is None else c.sums for c in self.chunks]

    def values_at(self, indices: Tensor) -> Tensor:
        """`accumulated` at ascending positions [K]; 0 where unused."""
        parts = [self._accumulated(chunk, here) for here, chunk in self._places(indices)]
        return self._masked(torch.cat(parts), indices)

    def uncompressed(self) -> Tensor:
        """`accumulated` at the plan's uncompressed positions [D]; 0 where unused."""
        places = self.plan.tables.on(self.device).places
        parts = map(self._accumulated, self.chunks, places)
        return self._masked(torch.cat(list(parts)), self.plan.uncompressed)

    def has_finite_uncompressed(self) -> bool:
        """Whether `uncompressed` is finite everywhere."""
        if not len(self.plan.uncompressed):
            return True
        return bool(self.uncompressed().isfinite().all())

    def is_finite(self) -> bool:
        """Whether `accumulated` is finite everywhere."""
        return all(map(self._is_finite, self.chunks))

    def _accumulated(self, chunk: Chunk, here: Tensor | slice = slice(None)) -> Tensor:
        """Of one chunk: all of it, or some places."""
        if chunk.sums is not None:
            return _at(chunk.sums, here)
        residual, momentum = self.memory.addends(chunk)
        sums = _at(chunk.grad, here).to(self.memory_dtype)
        if momentum is not None:
            sums = self.momentum * _at(momentum, here) + sums
        return sums if residual is None else _at(residual, here) + sums

    def _is_finite(self, chunk: Chunk) -> bool:
        """Mostly in one pass over the gradient alone."""
        added = [chunk.grad.to(self.memory_dtype), self.memory.addends(chunk).momentum]
        # A finite sum of squares holds no number that could make the finite residual overflow: it
        # would have to be half the spacing of the largest numbers, whose square is infinite.
        if all(all_finite_squares(each) for each in added if each is not None):
            return True
        return bool(self._accumulated(chunk).isfinite().all())

    def select(self, select: Select) -> Selection:
        """What a part selects, with values that fit the gradients' dtype.

        It is finite only where the uncompressed parameters are so, too.
        """
        selection = select(self)
        chosen, finite = selection.entries, selection.finite
        finite = finite and self.has_finite_uncompressed()
        entries = Entries(chosen.indices, self.clamped(chosen.values))
        return Selection(entries, finite, selection.writes)

    def _masked(self, values: Tensor, indices: Tensor) -> Tensor:
        """The values [K] of these positions, 0 where unused."""
        unused = self.unused_at(indices)
        return values if unused is None else values.masked_fill(to_device_of(unused, values), 0.0)

    def unused_at(self, indices: Tensor) -> Tensor | None:
        """Which positions [K] are of parameters unused on this rank, bool; None where none is."""
        unused = self.unused
        if unused is None:
            return None
        bounds = to_device_of(self.plan.bounds, indices)
        parameters = torch.searchsorted(bounds, indices.long(), right=True) - 1
        return to_device_of(unused, indices)[parameters]

    def kept_at(self, name: str, indices: Tensor) -> Tensor:
        """A tensor that is kept from step to step at ascending positions [K]."""
        return torch.cat([_at(chunk.kept[name], here) for here, chunk in self._places(indices)])

    def _places(self, indices: Tensor) -> Iterator[tuple[Tensor, Chunk]]:
        """For every chunk, which of its elements are at these positions."""
        starts = self.plan.starts
        for start, chunk, here in zip(starts, self.chunks, spans(indices, starts), strict=True):
            yield to_device_of(indices[here], chunk.grad).long() - start, chunk

    def cut(self, entries: Entries) -> list[Entries]:
        """What of some entries falls on every chunk, as positions from its start."""
        positions, values, starts = entries.indices, entries.values, self.plan.starts
        if positions is None:
            parts = values.split([len(chunk.grad) for chunk in self.chunks])
            return [Entries(None, part) for part in parts]
        return [
            Entries(positions[here] - start, values[here])
            for start, here in zip(starts, spans(positions, starts), strict=True)
        ]

    @cached_property
    def scale(self) -> Tensor | None:
        """What its gradients were multiplied by, []; None for 1."""
        return self.chunks[0].scale

    @cached_property
    def limit(self) -> Tensor | float | None:
        """The most of a value, so that it fits the gradients' dtype; None where all do."""
        limit = min(torch.finfo(self.dtype).max, torch.finfo(torch.float32).max)
        if self.scale is not None:
            return limit / self.scale
        return None if limit >= torch.finfo(self.memory_dtype).max else limit

    def clamped(self, values: Tensor) -> Tensor:
        """Finite values [K] within what the gradients' dtype holds, so that no mean overflows.

        What is cut off stays in memory, because only what is sent leaves it.
        """
        if self.limit is None:
            return values
        limit = cast(float, self.limit)  # what a tensor can be, too
        return values.clamp(-limit, limit)


def _at(flat: Tensor, here: Tensor | slice) -> Tensor:
    """Some places of a flat tensor."""
    # Several times faster than indexing with a tensor, where places are far apart.
    return flat[here] if isinstance(here, slice) else flat.index_select(0, here)
