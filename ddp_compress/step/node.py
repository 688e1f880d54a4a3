"""A node of several ranks: it averages dense gradients, and each rank exchanges a slice of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ddp_compress.message.arena import Arena
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.delivery import Deliveries
from ddp_compress.message.slices import Slices, slices_of
from ddp_compress.ops.devices import Stream, side_stream, to_device
from ddp_compress.stages import enter
from ddp_compress.step.replica import NOTHING, Replica
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.dense import Dense
from ddp_compress.transport.phases import Phases


class Node(Replica):
    """The L ranks of a node, between which links are fast.

    Message by message::

        slice = reduce_scatter(gradient) / L       inside the node: rank l has slice l
        slice = recipe(slice)                      between the ranks l of all nodes
        gradient = all_gather(slice)               inside, once the step counts

    Sums are made in rank order by the rank that owns the slice, so that all get the same bits. They
    travel from the GPU where the process group has a backend for it.

    Args:
        comm: the exchange among them, of what is in the host's memory.
        on_device: the same of what is on a GPU; None where that goes through the host.
        device: of the gradients.
    """

    kind = "slice"

    def __init__(self, comm: Comm, on_device: Comm | None, device: torch.device) -> None:
        super().__init__(comm)
        self._on_device = on_device
        self._dense = Dense(comm, on_device)
        self._device = device
        # Of this node's own: the stream that all states share never waits for another rank.
        self._stream = Stream(device)

    @property
    def comms(self) -> list[Comm]:
        """See `Replica`."""
        return [self.comm, *([self._on_device] if self._on_device else [])]

    @property
    def averages(self) -> int:
        """See `Replica`."""
        return self.comm.world_size

    def parts(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """This rank's slices, in the chunks' own memory: what is there has been sent by then."""
        return [
            replace(chunk, grad=chunk.grad[: layout.numel], layout=layout, kept=Arena())
            for chunk in chunks
            for layout in [self._slices(chunk).layouts[self.comm.rank]]
        ]

    def before(
        self,
        chunks: Sequence[Chunk],
        inside: Channel,
        exchange: Phases[Deliveries],
        channel: Channel,
        failure: Exception | None,
    ) -> Phases[Deliveries]:
        """See `Replica`. What fails in this node is told to all others."""
        try:
            if failure is not None:
                yield from inside.report(failure)
            pieces: list[Tensor] = []

            def ready() -> Tensor:  # what may fail on this rank alone, for the others to hear of
                pieces.extend(self._pieces(chunks))
                return NOTHING

            yield from inside.share(ready)  # all are here, with chunks of equal layouts
            yield from self._average(chunks, pieces)
        except Exception as error:
            exchange = channel.report(error)
        return (yield from exchange)

    def instead(
        self, inside: Channel, channel: Channel, error: BaseException
    ) -> Phases[Deliveries]:
        """See `Replica`. The node's other ranks take part in this message, so all do."""
        try:
            yield from inside.report(error)
        except Exception as told:
            error = told
        yield from channel.report(error)
        return None

    def after(self, chunks: Sequence[Chunk], parts: Sequence[Chunk]) -> Phases[None]:
        """See `Replica`."""
        with side_stream(chunks[0].grad.device).on():
            self._stream.follow()
        with self._stream.on():
            yield from self._gather(chunks, parts)

    def give_up(self) -> None:
        """See `Replica`."""
        self.close()

    def stream(self, device: torch.device) -> Stream:
        """See `Replica`."""
        return self._stream

    @contextmanager
    def _or_end(self) -> Iterator[None]:
        """For what may fail on this rank alone and cannot be told: nobody is to wait for us."""
        try:
            yield
        except Exception:
            self.close()
            raise

    def _slices(self, chunk: Chunk) -> Slices:
        return slices_of(chunk.layout, self.comm.world_size)

    def _numels(self, chunks: Sequence[Chunk]) -> list[int]:
        """Elements of every rank's parts, [L]."""
        by_chunk = [self._slices(chunk).numels for chunk in chunks]
        return [sum(numels) for numels in zip(*by_chunk, strict=True)]

    def _pieces(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """The gradients, slice by slice."""
        for chunk in chunks:
            _ = chunk.unused  # of this rank's gradient, while it is there
        by_chunk = [self._slices(chunk).views(chunk.grad) for chunk in chunks]
        return [p for views in zip(*by_chunk, strict=True) for v in views for p in v]

    def _average(self, chunks: Sequence[Chunk], pieces: Sequence[Tensor]) -> Phases[None]:
        """Put the mean of all ranks' gradients into this rank's parts."""
        with self._stream.host_waits():
            enter("encode")
            rows = yield from self._dense.scatter(pieces, self._numels(chunks))
            with self._or_end():
                rows = [to_device(row, self._device) for row in rows]
                for chunk in chunks:
                    n = self._slices(chunk).numels[self.comm.rank]
                    mean_into(chunk.grad[:n], [row[:n] for row in rows])
                    rows = [row[n:] for row in rows]

    def _gather(self, chunks: Sequence[Chunk], parts: Sequence[Chunk]) -> Phases[None]:
        """Fill chunks from all ranks' parts."""
        numels = self._numels(chunks)
        rows = yield from self._dense.gather([part.grad for part in parts], numels)
        with self._or_end():
            rows = [to_device(row, self._device) for row in rows]
            for chunk in chunks:
                slices = self._slices(chunk)
                found = [row[:n] for row, n in zip(rows, slices.numels, strict=True)]
                slices.join(found, into=chunk.grad)
                rows = [row[n:] for row, n in zip(rows, slices.numels, strict=True)]


def mean_into(mean: Tensor, rows: Sequence[Tensor]) -> None:
    """The mean of L rows [n], at least two; of half types summed in fp32, and rounded once.

    Example:
        >>> mean = torch.empty(2)
        >>> mean_into(mean, [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])])
        >>> mean
        tensor([2., 4.])
    """
    if mean.dtype in (torch.float16, torch.bfloat16):
        total = rows[0] + rows[1].float()
    else:
        total = torch.add(rows[0], rows[1], out=mean)
    for row in rows[2:]:
        total += row
    total *= 1 / len(rows)
    if total is not mean:
        mean.copy_(total)
