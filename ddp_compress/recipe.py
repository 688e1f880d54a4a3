"""A recipe names its parts. They are frozen configuration: all that changes is elsewhere.

gradient ─► memory + select ─► body (codec, quantize) ─► exchange ─► mean
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddp_compress.body.entry_list import EntryList
from ddp_compress.body.listed import Listed
from ddp_compress.checks import check_part
from ddp_compress.memory.addends import Addends
from ddp_compress.message.context import Context
from ddp_compress.message.encoded import Encoded
from ddp_compress.message.entries import AnyEntries, Entries
from ddp_compress.message.layout import Scope
from ddp_compress.message.plan import Plan
from ddp_compress.message.random_key import RandomKey
from ddp_compress.message.runs import Run
from ddp_compress.message.universe import Universe
from ddp_compress.schedules import Schedule, check_density

if TYPE_CHECKING:
    from ddp_compress.message.chunk import Chunk
    from ddp_compress.message.delivery import Deliveries
    from ddp_compress.message.message import Message
    from ddp_compress.message.selection import Selection
    from ddp_compress.transport.channel import Channel
    from ddp_compress.transport.phases import Phases


Tensors = Mapping[str, torch.dtype | None]
"""Tensors kept for every parameter, each as large as it: name and dtype, None for memory's."""


@runtime_checkable
class Memory(Protocol):
    """What a rank keeps of the gradients it has not sent."""

    @property
    def tensors(self) -> Tensors:
        """What is kept, such as "residual" and "momentum"; `retain` and `release` write it."""

    @property
    def clip(self) -> float | None:
        """On W ranks, clip / sqrt(W) is the most of the norm of a parameter's gradient; or None."""

    def momentum_at(self, step: int) -> float:
        """Factor of the kept momentum in a step; 0 where none is kept."""

    def addends(self, chunk: Chunk) -> Addends:
        """What is added to the gradient, before anything is selected of it."""

    def places(self, chunk: Chunk) -> Addends:
        """Where a selection may leave what it has added up: the next of all `addends`, or none."""

    def retain(self, chunk: Chunk, momentum: float) -> None:
        """Take the gradient [N] into memory."""

    def release(self, chunk: Chunk, start: int, sent: AnyEntries, uncompressed: bool) -> None:
        """Take out what was sent, entries of the message in which the chunk begins at ``start``.

        ``uncompressed`` entries are those that travel at every step.
        """


@runtime_checkable
class Select(Protocol):
    """Which entries of the accumulated gradient to send."""

    @property
    def density(self) -> float | Schedule:
        """Share of the elements to send."""

    @property
    def scope(self) -> Scope:
        """What one selection runs over."""

    @property
    def sends_all(self) -> bool:
        """Whether all entries are sent, so that none is left behind and no position travels."""

    @property
    def tensors(self) -> Tensors:
        """What is kept from step to step."""

    def __call__(self, message: Message) -> Selection:
        """The entries to send. Writes nothing that is kept."""


@runtime_checkable
class Quantize(Protocol):
    """Values on the wire."""

    @property
    def sum_dtype(self) -> torch.dtype:
        """In which decoded values may be summed over ranks."""

    def size(self, counts: Tensor) -> int:
        """The most bytes that `encode` gives for ``counts`` [G] values in the groups."""

    def encode(self, values: Tensor, context: Context) -> Tensor:
        """Bytes of the values [K], which may be memory's own: to be read only."""

    def decode(self, data: Tensor, context: Context) -> Tensor:
        """The values [K] again, fp32; ValueError where the bytes do not fit the context."""


@runtime_checkable
class QuantizeRuns(Quantize, Protocol):
    """A quantizer that reads and adds all entries where they lie, none of them decoded first."""

    def encode_runs(
        self, values: Sequence[Tensor], runs: Sequence[Run], context: Context
    ) -> Tensor | None:
        """The bytes of `encode`, of the values of every run; None where one is not finite."""

    def read_runs(
        self, data: Tensor, runs: Sequence[Run], context: Context, limit: Tensor | float | None
    ) -> Sequence[Encoded]:
        """What the bytes hold of every run; values are cut off at a magnitude, None for nowhere.

        Raises:
            ValueError: the bytes do not fit the context.
        """


@runtime_checkable
class DecodesAll(Quantize, Protocol):
    """A quantizer that decodes several ranks' bytes in less time than one after another."""

    def decode_all(self, bodies: Sequence[Tensor], context: Context) -> Sequence[Tensor]:
        """What `decode` gives for each of the bodies, of which there is at least one."""


@runtime_checkable
class Codec(Protocol):
    """Positions on the wire."""

    @property
    def implicit(self) -> bool:
        """Whether positions are those of all entries, and take no bytes."""

    def size(self, universe: Universe) -> int:
        """The most bytes that `encode` gives."""

    def encode(self, indices: Tensor, universe: Universe) -> Tensor:
        """Bytes of the ascending positions [K], int32."""

    def decode(self, data: Tensor, universe: Universe) -> tuple[Tensor, int]:
        """The positions again, and the bytes they took; ValueError where the bytes are bad."""


@runtime_checkable
class Body(Protocol):
    """Entries on the wire: how a codec's positions and a quantizer's values are put together."""

    def check(self, recipe: Recipe) -> None:
        """Raise a `ValueError` that names two parts which do not go together."""

    def size(self, plan: Plan, recipe: Recipe) -> int:
        """The most bytes of `plan.ks` entries."""

    def encode(
        self, entries: Entries, plan: Plan, universe: Universe, recipe: Recipe, key: RandomKey
    ) -> list[EntryList]:
        """Lists that hold the entries. Positions of all lists travel first, then all values.

        Args:
            entries: in the plan's groups, within the universe.
            plan: of the message, or of the shard, whose entries they are.
            universe: where positions may lie: the plan, or so many of its positions.
            recipe: its codec and quantizer.
            key: what random numbers are drawn from.
        """

    def decode(
        self, data: Tensor, plan: Plan, universe: Universe, recipe: Recipe, key: RandomKey
    ) -> tuple[Entries, Tensor]:
        """The entries again, values in fp32; how many are in every group, [G].

        Raises:
            ValueError: the bytes are bad, or entries lie outside the groups.
        """


@runtime_checkable
class Exchange(Protocol):
    """The only part that knows of other ranks. It orders the other parts' work."""

    @property
    def tensors(self) -> Tensors:
        """What is kept from step to step."""

    @property
    def many_phase(self) -> bool:
        """Whether a collective waits for an earlier one's result.

        One phase is launched from the hook. Many run beside backward on the state's worker thread,
        message after message, as all exchanges do on a GPU. What is still open when backward is
        over, and nothing was sent before, is driven by the hook.
        """

    @property
    def has_large_sender(self) -> bool:
        """Whether in the first phase one rank, ``step mod W``, sends more than the others."""

    def check(self, recipe: Recipe) -> None:
        """Raise a `ValueError` that names two parts which do not go together."""

    def run(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Deliveries]:
        """Send a message and return what to add on this rank, or None to abort the step.

        All that the message holds is to be delivered: entries that `Message.select` gives, and the
        uncompressed parameters (`exchange.uncompressed`); what other parts want written
        (`Selection.writes`); and, as ``sent``, what others decoded of this rank.
        """


@dataclass(frozen=True)
class Recipe:
    """An algorithm: parts that fit together.

    Args:
        name: how the algorithm is called in the literature.
        memory: what is kept of unsent gradients.
        select: which entries are sent.
        quantize: how their values travel.
        codec: how their positions travel.
        exchange: how ranks share them.
        body: how positions and values are put together.

    Raises:
        TypeError: a part is not of its slot, or a class in place of an instance.
        ValueError: two parts do not go together, or keep tensors of one name.

    Example:
        >>> from ddp_compress import recipes
        >>> recipes.topk(density=0.01).codec
        EliasFano()
    """

    name: str
    memory: Memory
    select: Select
    quantize: Quantize
    codec: Codec
    exchange: Exchange
    body: Body = field(default_factory=Listed)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r}")
        for slot, kind in _SLOTS.items():
            check_part(slot, getattr(self, slot), kind, slot)
        if not callable(self.select.density):
            check_density(self.select.density, "density")
        if not self.select.sends_all and not self.memory.tensors:
            raise ValueError(
                f"select={self.select!r} leaves entries behind, which memory={self.memory!r} does "
                "not keep: take memory=Residual(), or select=All()"
            )
        if self.select.sends_all and not self.codec.implicit:
            raise ValueError(
                f"select={self.select!r} sends all entries, whose positions codec={self.codec!r} "
                "would send: take codec=Implicit()"
            )
        if self.codec.implicit and not self.select.sends_all:
            raise ValueError(
                f"codec={self.codec!r} sends no positions, and select={self.select!r} selects "
                "some: take codec=EliasFano(), Golomb() or Raw()"
            )
        names = [name for part in self._keeping for name in part.tensors]
        if len(set(names)) < len(names):
            raise ValueError(f"parts keep tensors of one name: {', '.join(sorted(names))}")
        self.body.check(self)
        self.exchange.check(self)

    @property
    def tensors(self) -> Tensors:
        """What all parts together keep for every parameter."""
        return {name: dtype for part in self._keeping for name, dtype in part.tensors.items()}

    @property
    def _keeping(self) -> tuple[Memory, Select, Exchange]:
        return self.memory, self.select, self.exchange


_SLOTS: dict[str, type] = {
    "memory": Memory,
    "select": Select,
    "quantize": Quantize,
    "codec": Codec,
    "exchange": Exchange,
    "body": Body,
}
