"""After a restart, steps are taken in the checkpoint's buckets until DDP has rebuilt its own."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ddp_compress.message.arena import Arena
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.layout import Layout
from ddp_compress.ops.devices import Stream, record_stream

REBUILT_AFTER = 2  # steps at most: one, or with DDP's static_graph two


class Buckets:
    """The buckets that a state's steps come in, and after a restart those to go on with.

    DDP begins with one bucket for all parameters of a dtype. After its first step, with
    ``static_graph`` its second, it makes smaller ones, in the order in which gradients came. What a
    recipe selects may depend on the buckets and their order; so until DDP has rebuilt its own, a
    resumed state takes its steps in the buckets of its checkpoint: chunks are held back until the
    last has come, and sent in other ones. That takes the memory of one gradient more.

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
        self._held: list[Chunk] = []
        self._regrouped: list[Chunk] = []

    @property
    def digest(self) -> int:
        """A number that ranks share which will regroup gradients alike."""
        return zlib.crc32(repr(self.latest).encode()) if self._steps_left else 0

    def settle(self) -> None:
        """Take gradients as they come from now on."""
        self._steps_left = 0

    def let_go(self) -> None:
        """Of what was held back: the step has ended, however it did."""
        self._held, self._regrouped = [], []

    def ready(self, chunk: Chunk) -> list[Chunk]:
        """The chunks to send, now that another has come."""
        if self._steps_left:
            self._held.append(chunk)
            return []
        return [chunk]

    def rest(self, fail: Callable[[Exception], None]) -> list[Chunk]:
        """What was held back, all chunks of the step, in the buckets that it is to have.

        Args:
            fail: told what has failed on this rank; its messages must come to as many as others'.
        """
        if not self._held:
            return []
        layouts = self.choose(self._held)
        if layouts == tuple(chunk.layout for chunk in self._held):
            held, self._held = self._held, []
            return held
        self._regrouped = self._regroup(layouts, fail)
        return self._regrouped

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

    def give_back(self, stream_of: Callable[[torch.device], Stream]) -> None:
        """Put the results of what was sent in other buckets where the gradients came from.

        Args:
            stream_of: gives the stream of a device on which the results are made.
        """
        if not self._held:
            return
        parts = self._parts()
        for chunk in self._regrouped:
            with stream_of(chunk.grad.device).on():
                for name, part in chunk.layout.split(chunk.grad).items():
                    parts[name].copy_(part)
                record_stream(chunk.grad)  # it is of the backward's stream
        for chunk in self._held:
            with stream_of(chunk.grad.device).on():  # a future remembers the stream
                chunk.future.set_result(chunk.grad)

    def _regroup(self, layouts: Sequence[Layout], fail: Callable[[Exception], None]) -> list[Chunk]:
        """New chunks with copies of the gradients."""
        parts = self._parts()
        source = {name: chunk for chunk in self._held for name in chunk.layout.names}
        chunks = []
        for layout in layouts:
            like = source[layout.names[0]]
            try:
                grad = torch.cat([parts[name] for name in layout.names])
            except Exception as error:  # no memory, say: on this rank alone
                fail(error)
                grad = like.grad.new_zeros(()).expand(layout.numel)  # its message says what failed
            chunks.append(replace(like, grad=grad, layout=layout, kept=Arena()))
        return chunks

    def _parts(self) -> dict[str, Tensor]:
        """Every parameter's place in what was held back."""
        return {
            name: part
            for chunk in self._held
            for name, part in chunk.layout.split(chunk.grad).items()
        }

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
