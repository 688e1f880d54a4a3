"""A model's buffers on their way: means of some, rank 0's bytes of the others, uncompressed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.local.buffers import Buffers
from ddp_compress.ops import host
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.phases import drive


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
    channel = Channel(comm, 1, comm.agreed.density, lambda: names, 0, step)
    nothing = host.empty(0, dtype=torch.uint8)
    mean, others, numel = nothing.to(buffers.dtype), nothing, buffers.numel(names)
    if buffers.integers_of(names):
        here = channel.rank == 0
        bodies = drive(channel.share(lambda: buffers.integer_bytes(names) if here else nothing))
        assert bodies is not None, "no rank calls its bytes non-finite"
        others = bodies[0]
    if numel:
        _, mean = drive(channel.mean(lambda: buffers.moved(names), numel, buffers.dtype))
    return mean, others
