"""A model's buffers on their way: means of some, rank 0's bytes of the others, uncompressed."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddp_compress import host
from ddp_compress.exchange.channel import Channel
from ddp_compress.exchange.comm import Comm, Work

if TYPE_CHECKING:
    from ddp_compress.buffers import Buffers


def meet_over_buffers(comm: Comm, step: int, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """Learn from all ranks where a model's buffers go. Changes none.

    Args:
        comm: the other ranks.
        step: of the state that the weights travel through; ranks must agree.
        buffers: this rank's.

    Returns:
        The mean of `Buffers.moved`, [N], the same bits on every rank, and rank 0's
        `Buffers.others`; both on the host.

    Raises:
        PeerError: on every rank, where one failed.
    """
    comm.begin_step()
    talk = _talk(Channel(comm, 0, comm.density, lambda: "buffers", 0, step), buffers)
    while True:
        try:
            next(talk)
        except StopIteration as end:
            outcome: tuple[Tensor, Tensor] = end.value
            return outcome


def _talk(channel: Channel, buffers: Buffers) -> Generator[Work, None, tuple[Tensor, Tensor]]:
    nothing = host.empty(0, dtype=torch.uint8)
    bodies = yield from channel.share(lambda: nothing if channel.rank else buffers.others())
    assert bodies is not None, "no rank calls its bytes non-finite"
    _, mean = yield from channel.mean(buffers.moved, buffers.numel, buffers.dtype)
    return mean, bodies[0]
