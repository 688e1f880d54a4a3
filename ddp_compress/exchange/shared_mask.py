"""All ranks agree on one mask; then values at the mask are all that travels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddp_compress.body import Listed
from ddp_compress.checks import check_part
from ddp_compress.exchange.running_average import RunningAverage
from ddp_compress.exchange.uncompressed import reduce_uncompressed
from ddp_compress.message.context import Context
from ddp_compress.message.delivery import Deliveries, Delivery
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message
from ddp_compress.message.random_key import RandomKey
from ddp_compress.ops.devices import to_device
from ddp_compress.quantize import Levels
from ddp_compress.recipe import DecodesAll, Quantize, Recipe, Tensors
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


@dataclass(frozen=True)
class Mask:
    """The positions [K] int32, ascending, that all ranks agreed on.

    Args:
        positions: see above.
        writes: entries that this rank writes into kept tensors, by name, if the step commits.
    """

    positions: Tensor
    writes: Mapping[str, Entries] = field(default_factory=dict)


@runtime_checkable
class Agree(Protocol):
    """How ranks agree on a mask."""

    @property
    def has_large_sender(self) -> bool:
        """See `recipe.Exchange`."""

    def mask(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Mask | None]:
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
        predictor: what guesses the values; None for nothing.

    Example:
        >>> from ddp_compress.exchange import RotatingOwner
        >>> SharedMask(RotatingOwner())
        SharedMask(agree=RotatingOwner(), predictor=None)
    """

    agree: Agree
    predictor: RunningAverage | None = None

    many_phase: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_part("agree", self.agree, Agree, slot="exchange")
        if not isinstance(self.predictor, RunningAverage | None):
            raise TypeError(
                f"predictor must be exchange.RunningAverage(beta) or None, got {self.predictor!r}"
            )

    @property
    def has_large_sender(self) -> bool:
        """Whether the mask comes from one rank, in turn."""
        return self.agree.has_large_sender

    @property
    def tensors(self) -> Tensors:
        """The predictor's."""
        return {} if self.predictor is None else self.predictor.tensors

    def check(self, recipe: Recipe) -> None:
        """Raise a `ValueError` where there are no positions to agree on, or no use of a guess."""
        if recipe.select.sends_all:
            raise ValueError(
                f"exchange={self!r} agrees on positions, and select={recipe.select!r} sends all "
                "entries: take exchange=AllGather() or Sharded()"
            )
        if recipe.body != Listed():
            raise ValueError(
                f"exchange={self!r} sends positions and values apart, and body={recipe.body!r} "
                "holds both: take body=Listed()"
            )
        if self.predictor is not None and not isinstance(recipe.quantize, Levels):
            raise ValueError(
                f"predictor={self.predictor!r} guesses levels, and quantize={recipe.quantize!r} "
                "has none: take quantize=Levels(), or predictor=None"
            )

    def run(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Deliveries]:
        """See `recipe.Exchange.run`."""
        mask = yield from self.agree.mask(message, recipe, channel)
        if mask is None:
            return None
        uncompressed = yield from reduce_uncompressed(message, channel)
        average = None if self.predictor is None else message.kept_at("average", mask.positions)
        values = _MaskedValues(message, mask.positions, recipe.quantize, average, channel)
        sent, received, scale = yield from values.average()
        writes = dict(mask.writes)
        if self.predictor is not None and average is not None:
            total = reduce(torch.add, received)  # in rank order on every device
            moved = self.predictor.next(average, total * scale)
            writes["average"] = Entries(mask.positions, moved)
        lists = [Entries(mask.positions, each) for each in received]
        gone, unused = Entries(mask.positions, sent), message.unused_at(mask.positions)
        if unused is not None:  # there nothing was sent, and momentum stays
            gone = Entries(mask.positions[~unused], sent[~unused])
        return [Delivery([gone], lists, scale, writes=writes), *uncompressed]


class _MaskedValues:
    """The accumulated gradient at a mask [K], on its way to the other ranks."""

    def __init__(
        self,
        message: Message,
        mask: Tensor,
        quantize: Quantize,
        guess: Tensor | None,
        channel: Channel,
    ) -> None:
        plan = message.plan
        key = RandomKey(plan.group_names, message.step, channel.rank)
        self._context = Context(plan.counts(mask), key, guess)
        self._message = message
        self._mask = mask
        self._quantize = quantize
        self._channel = channel

    def average(self) -> Phases[tuple[Tensor, list[Tensor], float]]:
        """What this rank has sent [K]; what came, to be added up and scaled."""
        quantize, channel, ks = self._quantize, self._channel, self._message.plan.ks
        channel.stats.nonzeros += len(self._mask)
        reduced = 2 * int(ks.sum()) * quantize.sum_dtype.itemsize
        if channel.world_size * quantize.size(ks) <= reduced:
            return (yield from self._gather())
        return (yield from self._reduce())

    def _gather(self) -> Phases[tuple[Tensor, list[Tensor], float]]:
        channel = self._channel
        bodies = yield from channel.share(self._encoded)
        assert bodies is not None, "all was finite when the mask was agreed on"
        channel.stats.value_bits += 8 * len(bodies[channel.rank])
        received = self._decoded(bodies)
        return received[channel.rank], received, 1.0 / channel.world_size

    def _reduce(self) -> Phases[tuple[Tensor, list[Tensor], float]]:
        """In the quantizer's dtype for sums.

        All K places, whatever the mask's length: a rank that could not read it must still meet the
        others in a collective of one size.
        """
        k, dtype, length = self._message.plan.k, self._quantize.sum_dtype, len(self._mask)
        sent, mean = yield from self._channel.mean(
            lambda: pad(self._decoded([self._encoded()])[0], (0, k - length)), k, dtype
        )
        self._channel.stats.value_bits += 8 * k * dtype.itemsize
        sent, mean = (self._on_device(each[:length]) for each in (sent, mean))
        return sent, [mean], 1.0

    def _encoded(self) -> Tensor:
        message = self._message
        return self._quantize.encode(message.clamped(message.values_at(self._mask)), self._context)

    def _decoded(self, bodies: list[Tensor]) -> list[Tensor]:
        quantize, context = self._quantize, self._context
        if isinstance(quantize, DecodesAll):
            values = quantize.decode_all(bodies, context)
        else:
            values = [quantize.decode(body, context) for body in bodies]
        return [self._on_device(each) for each in values]

    def _on_device(self, values: Tensor) -> Tensor:
        message = self._message
        return to_device(values, message.device).to(message.memory_dtype)
