"""An all-reduce of the parameters that are not compressed."""

from ddp_compress.message.delivery import Delivery
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message
from ddp_compress.ops.devices import to_device_of
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


def reduce_uncompressed(message: Message, channel: Channel) -> Phases[list[Delivery]]:
    """Average the uncompressed parameters by an all-reduce; nothing where there are none."""
    positions = message.plan.uncompressed
    if not len(positions):
        return []
    channel.stats.nonzeros += len(positions)
    sent, mean = yield from channel.mean(
        lambda: message.clamped(message.values_at(positions)), len(positions), message.memory_dtype
    )
    here = message.chunks[0].grad
    lists = [
        Entries(to_device_of(positions, here), to_device_of(values, here))
        for values in (sent, mean)
    ]
    return [Delivery(lists[:1], lists[1:], 1.0, uncompressed=True)]
