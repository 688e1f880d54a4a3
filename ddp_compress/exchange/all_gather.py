"""Every rank sends its own selection to every other."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ddp_compress.exchange import entries
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Delivery, Message
from ddp_compress.ops.devices import to_device_of
from ddp_compress.stats import Stats
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.comm import Work

if TYPE_CHECKING:
    from ddp_compress.recipe import Recipe, Tensors


@dataclass(frozen=True)
class AllGather:
    """Select, quantize, encode, gather; decode every rank in rank order and take the mean.

    One collective a message, and no error but the compression's own. A rank sends one message and
    receives W - 1, so traffic grows with W. The body is: uncompressed values in the gradient's
    dtype, positions, values.

    Example:
        >>> AllGather()
        AllGather()
    """

    many_phase: ClassVar[bool] = False
    has_large_sender: ClassVar[bool] = False
    tensors: ClassVar[Tensors] = {}

    def run(
        self, message: Message, recipe: Recipe, channel: Channel
    ) -> Generator[Work, None, list[Delivery] | None]:
        """See `recipe.Exchange.run`."""
        answers = yield from channel.share(
            lambda: _encode(message, recipe, channel.stats, channel.rank)
        )
        if answers is None:
            return None
        selected, uncompressed = [], []
        for rank, answer in enumerate(answers):
            try:
                sparse, dense = _decode(answer, message, recipe, rank)
            except ValueError as error:
                raise ValueError(f"rank {rank}: {error}") from None
            selected.append(sparse)
            uncompressed.append(dense)
        scale = 1.0 / channel.world_size
        deliveries = [Delivery([selected[channel.rank]], selected, scale)]
        if len(message.plan.uncompressed):
            deliveries.append(
                Delivery([uncompressed[channel.rank]], uncompressed, scale, uncompressed=True)
            )
        return deliveries


def _encode(message: Message, recipe: Recipe, stats: Stats, rank: int) -> Tensor | None:
    """The body, or None where a gradient is not finite."""
    selection = entries.select(message, recipe)
    if not selection.finite:
        return None
    uncompressed = message.clamped(message.values_at(message.plan.uncompressed)).to(
        message.grads[0].dtype
    )
    stats.nonzeros += len(uncompressed)
    key = entries.random_key(message.plan, message, rank)
    selected = entries.encode(selection.entries, message.plan, recipe, stats, key)
    return torch.cat([uncompressed.view(torch.uint8), selected])


def _decode(body: Tensor, message: Message, recipe: Recipe, rank: int) -> tuple[Entries, Entries]:
    """Selected and uncompressed entries of a rank's body."""
    plan, dtype = message.plan, message.grads[0].dtype
    uncompressed_bytes = len(plan.uncompressed) * dtype.itemsize
    if len(body) < uncompressed_bytes:
        raise ValueError(
            f"uncompressed values: got {len(body)} bytes, expected {uncompressed_bytes}"
        )
    uncompressed = body[:uncompressed_bytes].clone().view(dtype)
    if not uncompressed.isfinite().all():
        raise ValueError("uncompressed values: a value is not finite")
    uncompressed = uncompressed.to(message.device, message.memory_dtype, non_blocking=True)
    selected = entries.decode(
        body[uncompressed_bytes:], plan, recipe, message, entries.random_key(plan, message, rank)
    )
    return selected, Entries(to_device_of(plan.uncompressed, uncompressed), uncompressed)
