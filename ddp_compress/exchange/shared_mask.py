"""All ranks agree on one mask; then values at the mask are all that travels."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddp_compress.exchange.channel import Channel
from ddp_compress.exchange.comm import Work
from ddp_compress.exchange.exact import reduce_exact
from ddp_compress.layout import Sparse
from ddp_compress.message import Delivery, Message
from ddp_compress.quantize import Values

if TYPE_CHECKING:
    from ddp_compress.recipe import Quantize, Recipe, Tensors


_Values = tuple[Tensor, list[Tensor], float]  # sent, received, scale


@dataclass(frozen=True)
class Mask:
    """The positions [K] int32, ascending, that all ranks agreed on.

    Args:
        positions: see above.
        writes: entries that this rank writes into kept tensors, by name, if the step commits.
    """

    positions: Tensor
    writes: Mapping[str, Sparse] = field(default_factory=dict)


class Agree(Protocol):
    """How ranks agree on a mask."""

    def run(
        self, message: Message, recipe: Recipe, channel: Channel
    ) -> Generator[Work, None, Mask | None]:
        """The mask, the same on every rank; None where a gradient is not finite."""


@dataclass(frozen=True)
class SharedMask:
    """Agree on one mask, then average the values at it.

    Plain values are summed by an all-reduce, in their own dtype. Quantized ones are gathered and
    decoded in rank order, or decoded at home and summed by an all-reduce of fp32, whichever sends
    fewer bytes: with q bits a value the gather does below W = 64 / q ranks.

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

    def run(
        self, message: Message, recipe: Recipe, channel: Channel
    ) -> Generator[Work, None, list[Delivery] | None]:
        """See `recipe.Exchange.run`."""
        mask = yield from self.agree.run(message, recipe, channel)
        if mask is None:
            return None
        channel.stats.nonzeros += len(mask.positions)
        exact = yield from reduce_exact(message, channel)
        delivery = yield from _average(mask.positions, message, recipe.quantize, channel)
        return [replace(delivery, writes={**mask.writes, **delivery.writes}), *exact]


def _average(
    mask: Tensor, message: Message, quantize: Quantize, channel: Channel
) -> Generator[Work, None, Delivery]:
    """Average the accumulated gradients at the mask."""
    counts, wide = message.plan.counts(mask), message.memory_dtype
    name = next(iter(quantize.tensors), None)
    guess = message.kept_at(name, mask) if name else None

    def values() -> Tensor:
        return message.clamped(message.values_at(mask))

    def encoded() -> Tensor:
        body = quantize.encode(values(), counts, guess)
        channel.stats.value_bits += 8 * len(body)
        return body

    def decoded(body: Tensor) -> Tensor:
        return quantize.decode(body, counts, guess).to(wide)

    def reduced(build: Callable[[], Tensor], dtype: torch.dtype) -> Generator[Work, None, _Values]:
        # All K places, whatever the mask's length: a rank that could not read it must still meet
        # the others in a collective of one size.
        k = message.plan.k
        sent, mean = yield from channel.mean(lambda: pad(build(), (0, k - len(mask))), k, dtype)
        channel.stats.value_bits += 8 * k * dtype.itemsize
        return sent[: len(mask)].to(wide), [mean[: len(mask)].to(wide)], 1.0

    if isinstance(quantize, Values):
        sent, received, scale = yield from reduced(values, quantize.dtype)
    elif _gather_is_cheaper(quantize.size(message.plan), message.plan.k, channel.world_size):
        bodies = yield from channel.share(encoded)
        assert bodies is not None, "all was finite when the mask was agreed on"
        received, scale = [decoded(body) for body in bodies], 1.0 / channel.world_size
        sent = received[channel.rank]
    else:
        sent, received, scale = yield from reduced(
            lambda: decoded(quantize.encode(values(), counts, guess)), torch.float32
        )
    writes = {}
    if name and guess is not None:
        mean = torch.stack(received).sum(0) * scale
        writes[name] = Sparse(mask, quantize.learn(guess, mean))
    lists = [Sparse(mask, each) for each in received]
    return Delivery([Sparse(mask, sent)], lists, scale, writes=writes)


def _gather_is_cheaper(body_bytes: int, count: int, world_size: int) -> bool:
    """Whether W - 1 bodies are less than a ring all-reduce of as many fp32 values."""
    return world_size * body_bytes <= 2 * 4 * count
