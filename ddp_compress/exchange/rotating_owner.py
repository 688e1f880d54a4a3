"""One rank's selection is everybody's mask; the rank changes with the step."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddp_compress.exchange.bodies import check_counts
from ddp_compress.exchange.shared_mask import Mask
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device
from ddp_compress.recipe import Recipe
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


@dataclass(frozen=True)
class RotatingOwner:
    """The mask is the selection of rank ``step mod W``, which alone selects and sends positions.

    One collective. The others only look whether their gradients are finite.

    Source: Hu et al., Practical Hybrid Gradient Compression for Federated Learning Systems (IJCAI
    2024), §3.1; Chen et al., ScaleCom (NeurIPS 2020), for the rotation.

    Example:
        >>> RotatingOwner()
        RotatingOwner()
    """

    has_large_sender: ClassVar[bool] = True

    def mask(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Mask | None]:
        """See `shared_mask.Agree`."""
        plan, owner = message.plan, message.step % channel.world_size
        writes: dict[str, Entries] = {}

        def build() -> Tensor | None:
            if channel.rank != owner:
                return host.empty(0, dtype=torch.uint8) if message.is_finite() else None
            selection = message.select(recipe.select)
            if not selection.finite:
                return None
            writes.update(selection.writes)
            body = recipe.codec.encode(selection.entries.positions, plan)
            channel.stats.position_bits += 8 * len(body)
            return body

        bodies = yield from channel.share(build)
        if bodies is None:
            return None

        def read() -> Tensor:
            mask, _ = recipe.codec.decode(to_device(bodies[owner], message.device), plan)
            check_counts(mask, plan)
            return mask

        return Mask(channel.attempt(read), writes)
