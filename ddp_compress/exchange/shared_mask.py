"""All ranks agree on one mask; then values at the mask are all that travels."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddp_compress.exchange.uncompressed import reduce_uncompressed
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Delivery, Message
from ddp_compress.message.random_key import RandomKey
from ddp_compress.quantize import Values
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.comm import Work

if TYPE_CHECKING:
    from ddp_compress.recipe import Quantize, Recipe, Tensors


@dataclass(frozen=True)
class Mask:
    """The positions [K] int32, ascending, that all ranks agreed on.

    Args:
        positions: see above.
        writes: entries that this rank writes into kept tensors, by name, if the step commits.
    """

    positions: Tensor
    writes: Mapping[str, Entries] = field(default_factory=dict)


class Agree(Protocol):
    """How ranks agree on a mask."""

    @property
    def has_large_sender(self) -> bool:
        """See `recipe.Exchange`."""

    def run(
        self, message: Message, recipe: Recipe, channel: Channel
    ) -> Generator[Work, None, Mask | None]:
        """The mask, the same on every rank; None where a gradient is not finite."""


@dataclass(frozen=True)
class SharedMask:
    """Agree on one mask, then average the values at it.

    The bytes of the values are gathered and decoded in rank order, or they are decoded at home and
    averaged by an all-reduce, whichever sends less. With values of q bits, reduced in b, the gather
    does up to W = 2 b / q ranks: plain values are reduced from three ranks on, in their own dtype,
    levels of one bit (and zero, which makes it 1.6) from 40 on, in fp32.

    Args:
        agree: how ranks agree on a mask.

    Example:
        >>> from ddp_compress.exchange import RotatingOwner
        >>> SharedMask(RotatingOwner())
        SharedMask(agree=RotatingOwner())
    """

    agree: Agree

    many_phase: ClassVar[bool] = True
    tensors: ClassVar[Tensors] = {}

    @property
    def has_large_sender(self) -> bool:
        """Whether the mask comes from one rank, in turn."""
        return self.agree.has_large_sender

    def run(
        self, message: Message, recipe: Recipe, channel: Channel
    ) -> Generator[Work, None, list[Delivery] | None]:
        """See `recipe.Exchange.run`."""
        mask = yield from self.agree.run(message, recipe, channel)
        if mask is None:
            return None
        uncompressed = yield from reduce_uncompressed(message, channel)
        delivery = yield from _average(mask.positions, message, recipe.quantize, channel)
        return [replace(delivery, writes={**mask.writes, **delivery.writes}), *uncompressed]


def _average(
    mask: Tensor, message: Message, quantize: Quantize, channel: Channel
) -> Generator[Work, None, Delivery]:
    """Average the accumulated gradients at the mask."""
    counts, k, stats = message.plan.counts(mask), message.plan.k, channel.stats
    name = next(iter(quantize.tensors), None)
    guess = message.kept_at(name, mask) if name else None
    stats.nonzeros += len(mask)
    key = RandomKey(message.plan.group_names, message.step, channel.rank)

    def encoded() -> Tensor:
        return quantize.encode(message.clamped(message.values_at(mask)), counts, guess, key)

    def decoded(body: Tensor) -> Tensor:
        values = quantize.decode(body, counts, guess, key)
        return values.to(message.device, message.memory_dtype, non_blocking=True)

    summed = quantize.dtype if isinstance(quantize, Values) else torch.float32
    if channel.world_size * quantize.size(message.plan) <= 2 * k * summed.itemsize:
        bodies = yield from channel.share(encoded)
        assert bodies is not None, "all was finite when the mask was agreed on"
        stats.value_bits += 8 * len(bodies[channel.rank])
        received, scale = [decoded(body) for body in bodies], 1.0 / channel.world_size
        sent = received[channel.rank]
    else:
        # All K places, whatever the mask's length: a rank that could not read it must still meet
        # the others in a collective of one size.
        sent, mean = yield from channel.mean(
            lambda: pad(decoded(encoded()), (0, k - len(mask))), k, summed
        )
        stats.value_bits += 8 * k * summed.itemsize
        sent, mean = (
            each[: len(mask)].to(message.device, message.memory_dtype, non_blocking=True)
            for each in (sent, mean)
        )
        received, scale = [mean], 1.0
    writes = {}
    if name and guess is not None:
        total = reduce(torch.add, received)  # in rank order on every device
        writes[name] = Entries(mask, quantize.learn(guess, total * scale))
    lists = [Entries(mask, values) for values in received]
    gone, unused = Entries(mask, sent), message.unused_at(mask)
    if unused is not None:  # there nothing was sent, and momentum stays
        gone = Entries(mask[~unused], sent[~unused])
    return Delivery([gone], lists, scale, writes=writes)
