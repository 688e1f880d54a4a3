"""After a restart DDP's buckets are others for a while: a step in those of the checkpoint."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ddp_compress.message.arena import Arena
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.layout import Layout
from ddp_compress.ops.devices import SideStream, record_stream
from ddp_compress.step.transaction import Transaction
from ddp_compress.step.undo import Undo

REBUILT_AFTER = 2  # steps at most: one, or with DDP's static_graph two


class Buckets:
    """The buckets that a state's steps come in, and after a restart those to go on with.

    DDP begins with one bucket for all parameters of a dtype. After its first step, with
    ``static_graph`` its second, it makes smaller ones, in the order in which gradients came. What a
    recipe selects may depend on the buckets and their order; so until DDP has rebuilt its own, a
    resumed state takes its steps in the buckets of its checkpoint.

    It ends when gradients come in these, or in others than in the step before: DDP has rebuilt
    them. It ends after two steps in any case, for DDP may have no reason to make such buckets
    again, and at once where it cannot be: other layers are frozen, or some have another dtype.

    Args:
        resumed: those of a checkpoint; none for a state that begins.

    Attributes:
        latest: the buckets of the latest committed step.
    """

    def __init__(self, resumed: Sequence[Layout] = ()) -> None:
        self.latest = tuple(resumed)
        self._steps_left = REBUILT_AFTER if resumed else 0
        self._came: tuple[Layout, ...] | None = None  # in the step before

    @property
    def digest(self) -> int:
        """A number that ranks share which will regroup gradients alike."""
        return zlib.crc32(repr(self.latest).encode()) if self._steps_left else 0

    def settle(self) -> None:
        """Take gradients as they come from now on."""
        self._steps_left = 0

    def begin(self, step: Transaction, side_stream: SideStream) -> Transaction | ReplayedBuckets:
        """What is to take the chunks of a step."""
        return ReplayedBuckets(step, self, side_stream) if self._steps_left else step

    def choose(self, chunks: Sequence[Chunk]) -> tuple[Layout, ...]:
        """The buckets that a step is to have, all of whose chunks have come.

        Example:
            >>> buckets = Buckets([Layout(("b",), (1,)), Layout(("a",), (2,))])
            >>> chunks = [Chunk(torch.ones(3), Layout(("a", "b"), (2, 1)))]
            >>> [layout.names for layout in buckets.choose(chunks)]
            [('b',), ('a',)]
        """
        came = tuple(chunk.layout for chunk in chunks)
        rebuilt = self._came not in (None, came)
        if came == self.latest or rebuilt or not self._can_hold(chunks):
            self.settle()
            return came
        self._came = came
        self._steps_left -= 1
        return self.latest

    def _can_hold(self, chunks: Sequence[Chunk]) -> bool:
        """Whether these are the parameters, and no bucket would be of two kinds."""
        kinds = {
            name: (chunk.grad.dtype, chunk.grad.device)
            for chunk in chunks
            for name in chunk.layout.names
        }
        names = [layout.names for layout in self.latest]
        return kinds.keys() == {name for each in names for name in each} and all(
            len({kinds[name] for name in each}) == 1 for each in names
        )


class ReplayedBuckets:
    """A step whose chunks are kept until the last, and sent in other buckets than they came in.

    To a state it is a `Transaction`. It takes the memory of one gradient more.

    Args:
        step: sends and commits them.
        buckets: says which ones.
        side_stream: see `Transaction`.
    """

    def __init__(self, step: Transaction, buckets: Buckets, side_stream: SideStream) -> None:
        self._step = step
        self._buckets = buckets
        self._side_stream = side_stream
        self._came: list[Chunk] = []

    @property
    def layouts(self) -> list[Layout]:
        """Of the chunks as they were sent."""
        return self._step.layouts

    @property
    def undo(self) -> Undo | None:
        """See `Transaction`."""
        return self._step.undo

    def add(self, chunk: Chunk) -> None:
        """Keep a chunk."""
        self._came.append(chunk)

    def fail(self, error: Exception) -> None:
        """See `Transaction.fail`."""
        self._step.fail(error)

    def abandon(self) -> None:
        """See `Transaction.abandon`. Nothing was sent yet."""
        self._step.abandon()

    def finish(self) -> bool:
        """Send all that came, and commit; see `Transaction.finish`."""
        layouts = self._buckets.choose(self._came)
        as_they_came = layouts == tuple(chunk.layout for chunk in self._came)
        chunks = self._came if as_they_came else self._regroup(layouts)
        for chunk in chunks:
            self._step.add(chunk)
        committed = self._step.finish()
        if not as_they_came:
            self._give_back(chunks)
        return committed

    def _regroup(self, layouts: Sequence[Layout]) -> list[Chunk]:
        """New chunks with copies of the gradients."""
        parts = self._parts()
        source = {name: chunk for chunk in self._came for name in chunk.layout.names}
        chunks = []
        for layout in layouts:
            like = source[layout.names[0]]
            try:
                grad = torch.cat([parts[name] for name in layout.names])
            except Exception as error:  # no memory, say: on this rank alone
                self.fail(error)
                # Messages must come to as many as on the others. This one's say only what failed.
                grad = like.grad.new_zeros(()).expand(layout.numel)
            chunks.append(replace(like, grad=grad, layout=layout, kept=Arena()))
        return chunks

    def _give_back(self, chunks: Sequence[Chunk]) -> None:
        """Put the results where the gradients came from."""
        parts = self._parts()
        for chunk in chunks:
            with self._side_stream.on(chunk.grad.device):
                for name, part in chunk.layout.split(chunk.grad).items():
                    parts[name].copy_(part)
                record_stream(chunk.grad)  # it is of the backward's stream
        for chunk in self._came:
            with self._side_stream.on(chunk.grad.device):  # a future remembers the stream
                chunk.future.set_result(chunk.grad)

    def _parts(self) -> dict[str, Tensor]:
        """Every parameter's place in what came."""
        return {
            name: part
            for chunk in self._came
            for name, part in chunk.layout.split(chunk.grad).items()
        }
