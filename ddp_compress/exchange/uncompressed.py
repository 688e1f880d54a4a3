"""The parameters that are not compressed, on their way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.message.delivery import Delivery
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message
from ddp_compress.ops.devices import at_once_on_device, to_device_of
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


def reduce_uncompressed(message: Message, channel: Channel) -> Phases[list[Delivery]]:
    """Average the uncompressed parameters by an all-reduce; nothing where there are none."""
    count = len(message.plan.uncompressed)
    if not count:
        return []
    channel.stats.nonzeros += count
    sent, mean = yield from channel.mean(
        lambda: message.clamped(message.uncompressed()), count, message.memory_dtype
    )
    here = message.chunks[0].grad
    lists = [_entries(message, to_device_of(values, here)) for values in (sent, mean)]
    return [Delivery(lists[:1], lists[1:], 1.0, uncompressed=True)]


def split_uncompressed(
    bodies: Sequence[Tensor], message: Message
) -> tuple[list[Tensor], list[Entries]]:
    """The rest of every rank's body, and the uncompressed parameters that it begins with.

    Raises:
        ValueError: a body is too short, or a value is not finite.
    """
    count, dtype = len(message.plan.uncompressed), message.dtype
    if not count:
        return list(bodies), []
    size = count * dtype.itemsize
    for rank, body in enumerate(bodies):
        if len(body) < size:
            raise ValueError(
                f"rank {rank}: uncompressed values: got {len(body)} bytes, expected {size}"
            )
    values = torch.cat([body[:size] for body in bodies]).view(dtype).view(-1, count)
    finite = values.isfinite().all(1)
    if not finite.all():
        rank = int((~finite).nonzero()[0])
        raise ValueError(f"rank {rank}: uncompressed values: a value is not finite")
    (there,) = at_once_on_device([values.flatten()], message.device)
    each = there.to(message.memory_dtype).split(count)
    return [body[size:] for body in bodies], [_entries(message, values) for values in each]


def _entries(message: Message, values: Tensor) -> Entries:
    return Entries(message.plan.tables.on(message.device).uncompressed, values)
