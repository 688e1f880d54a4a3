"""A model's buffers on their way: means of some, rank 0's bytes of the others, uncompressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.phases import Phases, drive

if TYPE_CHECKING:
    from ddp_compress.local.buffers import Buffers


def average_buffers(
    comm: Comm, step: int, buffers: Buffers, names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Learn from all ranks where a model's buffers go. Changes none.

    Args:
        comm: the other ranks.
        step: of the state that the weights travel through; ranks must agree.
        buffers: this rank's.
        names: those that have changed on some rank, alike on all; the others stay where they are.

    Returns:
        The mean of `Buffers.moved`, [N], the same bits on every rank, and rank 0's
        `Buffers.integer_bytes`; both on the host.

    Raises:
        PeerError: on every rank, where one failed.
    """
    return drive(
        _talk(Channel(comm, 1, comm.agreed.density, lambda: names, 0, step), buffers, names)
    )


def _talk(
    channel: Channel, buffers: Buffers, names: Sequence[str]
) -> Phases[tuple[Tensor, Tensor]]:
    nothing = host.empty(0, dtype=torch.uint8)
    mean, others, numel = nothing.to(buffers.dtype), nothing, buffers.numel(names)
    if buffers.others_of(names):
        bodies = yield from channel.share(
            lambda: nothing if channel.rank else buffers.integer_bytes(names)
        )
        assert bodies is not None, "no rank calls its bytes non-finite"
        others = bodies[0]
    if numel:
        _, mean = yield from channel.mean(lambda: buffers.moved(names), numel, buffers.dtype)
    return mean, others
