"""Before ranks meet, every one says why it has come; where they differ, all raise."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.comm import Comm, PeerError
from ddp_compress.transport.phases import drive

_COUNTS = struct.Struct("<II")


@dataclass(frozen=True)
class Answer:
    """Why a rank has come to a meeting, and what it brings.

    Args:
        period: of the round that is due on this rank; 0 where none is, and it synchronizes.
        passes: local steps since the last round.
        changed: the buffers that have changed since, a bit each; the first one's is the lowest.

    Example:
        >>> print(Answer(period=4, passes=4))
        a round of period 4 is due, 4 passes after the last one
        >>> Answer.of(Answer(0, 3, changed=0b101).body())
        Answer(period=0, passes=3, changed=5)
    """

    period: int
    passes: int
    changed: int = 0

    def __str__(self) -> str:
        if self.period:
            return (
                f"a round of period {self.period} is due, {self.passes} passes after the last one"
            )
        return f"synchronize(), {self.passes} passes after the last round"

    def body(self) -> Tensor:
        """As bytes, uint8."""
        bits = self.changed.to_bytes((self.changed.bit_length() + 7) // 8, "little")
        return host.from_bytes(_COUNTS.pack(self.period, self.passes) + bits)

    @classmethod
    def of(cls, body: Tensor) -> Answer:
        """Undo `body`."""
        data = host.to_bytes(body)
        period, passes = _COUNTS.unpack_from(data)
        return cls(period, passes, int.from_bytes(data[_COUNTS.size :], "little"))


def call_roll(comm: Comm, step: int, answer: Callable[[], Answer]) -> list[Answer]:
    """Learn why every rank meets.

    Args:
        comm: the other ranks.
        step: of the state that the weights travel through; ranks must agree.
        answer: this rank's. If it raises, every rank raises.

    Returns:
        The answers, in rank order: all of the same round, or all to synchronize.

    Raises:
        PeerError: on every rank, where one failed or has come for another reason.
    """
    comm.begin_step()
    channel = Channel(comm, 0, comm.agreed.density, lambda: "roll call", 0, step)
    bodies = drive(channel.share(lambda: answer().body()))
    assert bodies is not None, "no rank calls its answer non-finite"
    answers = [Answer.of(body) for body in bodies]
    first = comm.names[0]
    for rank, other in zip(comm.names, answers, strict=True):
        if _reason(other) != _reason(answers[0]):
            raise PeerError(
                f"ranks must meet for the same reason, but rank {rank} differs from rank {first}:\n"
                f"  rank {first}: {answers[0]}\n  rank {rank}: {other}\n"
                "Give every rank the same period and as many batches; or stop all of them before "
                "one comes to a round that the others do not, and then synchronize()"
            )
    return answers


def _reason(answer: Answer) -> tuple[int, int]:
    """What ranks must share: who synchronizes may have taken any number of steps."""
    return answer.period, answer.passes if answer.period else 0
