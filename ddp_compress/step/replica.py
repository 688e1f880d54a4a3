"""The ranks that hold one gradient together: before a step counts, they agree that it does."""

from collections.abc import Callable, Sequence

import torch

from ddp_compress.checkpoints.checkpoint import Part
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.delivery import Deliveries
from ddp_compress.ops import host
from ddp_compress.ops.devices import Stream, side_stream
from ddp_compress.stats import Traffic
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.phases import Phases

VERDICT = -1  # a message's number, beside those that count from 0
NOTHING = host.empty(0, dtype=torch.uint8)  # a body: to be here says enough


class Replica:
    """The ranks that hold one gradient together, each of which exchanges its part with its peers.

    So one hears of what another's peers have met: what has failed, or is not finite, anywhere.

    Args:
        comm: the exchange among them.
    """

    kind = "shard"

    def __init__(self, comm: Comm) -> None:
        self.comm = comm

    @property
    def comms(self) -> list[Comm]:
        """Every exchange of these ranks."""
        return [self.comm]

    @property
    def part(self) -> Part:
        """Which part of every parameter is this rank's, as checkpoints tell it."""
        return [self.kind, self.comm.rank, self.comm.world_size]

    @property
    def averages(self) -> int:
        """How many ranks' gradients `before` averages."""
        return 1

    def count_in(self, traffic: Traffic) -> None:
        """Count there from now on."""
        for comm in self.comms:
            comm.traffic = traffic

    def parts(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """What of some chunks this rank exchanges with its peers."""
        return chunks

    def channel(
        self, number: int, density: float, step: int, must_share: Callable[[], object]
    ) -> Channel:
        """For a message that these ranks have among themselves; see `Channel`."""
        return Channel(self.comm, number, density, must_share, 0, step)

    def before(
        self,
        chunks: Sequence[Chunk],
        inside: Channel,
        exchange: Phases[Deliveries],
        channel: Channel,
        failure: Exception | None,
    ) -> Phases[Deliveries]:
        """A message's exchange, behind what fills the parts of its chunks.

        Args:
            chunks: whole ones.
            inside: of these ranks.
            exchange: with this rank's peers.
            channel: of the same.
            failure: what has failed on this rank already.
        """
        return exchange

    def instead(
        self, inside: Channel, channel: Channel, error: BaseException
    ) -> Phases[Deliveries]:
        """What is done with a message where the one before it in its step has failed.

        Args:
            inside: of these ranks.
            channel: of this rank's peers.
            error: of the one before.
        """
        return channel.fail_as(error)

    def after(self, chunks: Sequence[Chunk], parts: Sequence[Chunk]) -> Phases[None]:
        """Fill chunks from all ranks' parts, which hold the mean by now."""
        yield from ()

    def give_up(self) -> None:
        """This rank does not come to `after`: nobody is to wait for it there."""

    def stream(self, device: torch.device) -> Stream:
        """On which `after` works."""
        return side_stream(device)

    def verdict(self, inside: Channel, finite: bool, failure: Exception | None) -> Phases[bool]:
        """Whether the step counts: whether all gradients were finite on every rank.

        Args:
            inside: of these ranks.
            finite: as far as this rank's peers know.
            failure: as far as these know.

        Raises:
            PeerError: on every rank, where one failed or differs.
        """
        if failure is not None:
            yield from inside.report(failure)
        return (yield from inside.share(lambda: NOTHING if finite else None)) is not None

    def close(self) -> None:
        """End the groups; see `Comm.close`."""
        for comm in self.comms:
            comm.close()
