"""Every rank sends its own selection to every other."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddp_compress.exchange.bodies import Bodies
from ddp_compress.message.delivery import Deliveries, Delivery
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message
from ddp_compress.message.selection import Selection
from ddp_compress.ops.devices import to_device_of
from ddp_compress.recipe import Recipe, Tensors
from ddp_compress.stats import Stats
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


@dataclass(frozen=True)
class AllGather:
    """Select, quantize, encode, gather; decode every rank in rank order and take the mean.

    One collective a message, once sizes are steady, and no error but the compression's own. A rank
    sends one message and receives W - 1, so traffic grows with W. The body is: uncompressed values
    in the gradient's dtype, positions, values.

    Example:
        >>> AllGather()
        AllGather()
    """

    many_phase: ClassVar[bool] = False
    has_large_sender: ClassVar[bool] = False
    tensors: ClassVar[Tensors] = {}

    def check(self, recipe: Recipe) -> None:
        """Whatever is selected can be gathered."""

    def run(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Deliveries]:
        """See `recipe.Exchange.run`."""
        bodies = Bodies(message, recipe, channel.stats, channel.rank)
        writes: dict[str, Entries] = {}

        def encoded() -> Tensor | None:
            selection = message.select(recipe.select)
            writes.update(selection.writes)
            return _encode(selection, message, bodies, channel.stats)

        every = yield from channel.share(encoded)
        if every is None:
            return None
        selected, uncompressed = [], []
        for rank, body in enumerate(every):
            try:
                entries, values = _decode(body, message, bodies)
            except ValueError as error:
                raise ValueError(f"rank {rank}: {error}") from None
            selected.append(entries)
            uncompressed.append(values)
        here, scale = slice(channel.rank, channel.rank + 1), 1.0 / channel.world_size
        deliveries = [Delivery(selected[here], selected, scale, writes=writes)]
        if len(message.plan.uncompressed):
            deliveries.append(Delivery(uncompressed[here], uncompressed, scale, uncompressed=True))
        return deliveries


def _encode(selection: Selection, message: Message, bodies: Bodies, stats: Stats) -> Tensor | None:
    """The body, or None where a gradient is not finite."""
    if not selection.finite:
        return None
    selected, positions = bodies.encode(selection.entries, message.plan), message.plan.uncompressed
    if not len(positions):
        return selected
    uncompressed = message.clamped(message.values_at(positions)).to(message.dtype)
    stats.nonzeros += len(positions)
    return torch.cat([uncompressed.view(torch.uint8), selected])


def _decode(body: Tensor, message: Message, bodies: Bodies) -> tuple[Entries, Entries]:
    """Selected and uncompressed entries of a rank's body."""
    plan, dtype = message.plan, message.dtype
    size = len(plan.uncompressed) * dtype.itemsize
    if len(body) < size:
        raise ValueError(f"uncompressed values: got {len(body)} bytes, expected {size}")
    selected = bodies.decode(body[size:], plan)
    uncompressed = body[:size].clone().view(dtype)
    if not uncompressed.isfinite().all():
        raise ValueError("uncompressed values: a value is not finite")
    uncompressed = uncompressed.to(message.device, message.memory_dtype, non_blocking=True)
    return selected, Entries(to_device_of(plan.uncompressed, uncompressed), uncompressed)
