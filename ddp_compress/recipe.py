"""A recipe names its five parts. The parts are frozen configuration: all that changes is elsewhere.

gradient ─► memory + select ─► quantize ─► codec ─► exchange ─► mean
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddp_compress.message.entries import Entries
from ddp_compress.message.entry_list import EntryList
from ddp_compress.message.layout import Scope
from ddp_compress.message.plan import Plan
from ddp_compress.message.random_key import RandomKey
from ddp_compress.message.universe import Universe
from ddp_compress.schedules import Schedule

if TYPE_CHECKING:
    from ddp_compress.message.message import Chunk, Delivery, Message, Selection
    from ddp_compress.transport.channel import Channel
    from ddp_compress.transport.comm import Work


Tensors = Mapping[str, torch.dtype | None]
"""Tensors kept for every parameter, each as large as it: name and dtype, None for memory's."""


@runtime_checkable
class Memory(Protocol):
    """What a rank keeps of the gradients it has not sent."""

    @property
    def tensors(self) -> Tensors:
        """What is kept: "residual", and "momentum" where there is one."""

    @property
    def clip(self) -> float | None:
        """Bound, times sqrt(W), of the norm of every parameter's gradient; None for none."""

    def momentum_at(self, step: int) -> float:
        """Factor of the kept momentum in a step; 0 where none is kept."""

    def retain(self, chunk: Chunk, momentum: float) -> None:
        """Move the gradient [N] into memory, leaving zeros."""

    def release(self, chunk: Chunk, start: int, sent: Entries, uncompressed: bool) -> None:
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
    def tensors(self) -> Tensors:
        """What is kept from step to step."""

    @property
    def needs(self) -> Sequence[str]:
        """The tensors of memory that selecting reads, and does not do without."""

    def __call__(self, message: Message) -> Selection:
        """The entries to send. Writes nothing."""


@runtime_checkable
class Quantize(Protocol):
    """The values on the wire, for positions that the receiver knows.

    Entries that travel with their positions go in packages, each with a list of its own.
    """

    @property
    def tensors(self) -> Tensors:
        """What is kept from step to step, to guess values: at most one tensor."""

    def size(self, plan: Plan) -> int:
        """The most bytes that `encode` gives."""

    def encode(
        self,
        values: Tensor,
        counts: Tensor,
        guess: Tensor | None = None,
        key: RandomKey | None = None,
    ) -> Tensor:
        """Bytes of the values [K], with ``counts`` [G] of them in every group.

        What is random comes of ``key``.
        """

    def decode(
        self,
        data: Tensor,
        counts: Tensor,
        guess: Tensor | None = None,
        key: RandomKey | None = None,
    ) -> Tensor:
        """The values [K] again, fp32; ValueError where the bytes do not fit the counts.

        All but ``key.own`` is as it was in `encode`.
        """

    def learn(self, guess: Tensor, mean: Tensor) -> Tensor:
        """The next guess [K], after the mean over ranks is known."""

    def universes(self, plan: Plan, universe: Universe) -> list[Universe]:
        """Where the list of every package lies, for entries whose positions lie in ``universe``."""

    def pack(self, entries: Entries, plan: Plan, key: RandomKey | None = None) -> list[EntryList]:
        """The packages, as many as universes."""

    def unpack(
        self, places: Sequence[Tensor], values: Tensor, plan: Plan, key: RandomKey | None = None
    ) -> tuple[Entries, Tensor]:
        """The entries again, with values in fp32, and how many are in every group, [G].

        Raises:
            ValueError: the bytes of values are bad.
        """


@runtime_checkable
class Codec(Protocol):
    """Positions on the wire."""

    def size(self, universe: Universe) -> int:
        """The most bytes that `encode` gives."""

    def encode(self, indices: Tensor, universe: Universe) -> Tensor:
        """Bytes of the ascending positions [K], int32."""

    def decode(self, data: Tensor, universe: Universe) -> tuple[Tensor, int]:
        """The positions again, and the bytes they took; ValueError where the bytes are bad."""


@runtime_checkable
class Exchange(Protocol):
    """The only part that knows of other ranks. It orders the other parts' work."""

    @property
    def tensors(self) -> Tensors:
        """What is kept from step to step."""

    @property
    def many_phase(self) -> bool:
        """Whether a collective waits for an earlier one's result.

        One phase is launched from the hook. Many run on a process group of their own: beside
        backward on the state's worker thread, message after message; what is sent at the step's
        last chunk, when backward is over, from the hook.
        """

    @property
    def has_large_sender(self) -> bool:
        """Whether in the first phase one rank, ``step mod W``, sends more than the others."""

    def run(
        self, message: Message, recipe: Recipe, channel: Channel
    ) -> Generator[Work, None, list[Delivery] | None]:
        """Send a message and return what to add on this rank, or None to abort the step.

        A generator: it launches collectives, and yields each before it needs the result. All ranks
        launch in the same order, so whoever drives it decides when to wait, never what comes first.
        """


@dataclass(frozen=True)
class Recipe:
    """An algorithm: five parts that fit together.

    Args:
        name: how the algorithm is called in the literature.
        memory: what is kept of unsent gradients.
        select: which entries are sent.
        quantize: how their values travel.
        codec: how their positions travel.
        exchange: how ranks share them.

    Raises:
        TypeError: a part is not of its slot, or a class in place of an instance.
        ValueError: the selection reads what the memory does not keep.

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

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r}")
        for slot, kind in _SLOTS.items():
            _check_part(slot, kind, getattr(self, slot))
        missing = [name for name in self.select.needs if name not in self.memory.tensors]
        if missing:
            raise ValueError(
                f"select={self.select!r} reads the {' and '.join(missing)}, which "
                f"memory={self.memory!r} does not keep: take memory.Residual(), or "
                "select.All(), which reads none"
            )

    @property
    def tensors(self) -> Tensors:
        """What all parts together keep for every parameter."""
        parts = (self.memory, self.select, self.quantize, self.exchange)
        return {name: dtype for part in parts for name, dtype in part.tensors.items()}


_SLOTS: dict[str, type] = {
    "memory": Memory,
    "select": Select,
    "quantize": Quantize,
    "codec": Codec,
    "exchange": Exchange,
}


def _check_part(slot: str, kind: type, part: object) -> None:
    if isinstance(part, type):
        raise TypeError(
            f"{slot} must be an instance, got the class {part.__name__}: write {part.__name__}(...)"
        )
    if not isinstance(part, kind):
        raise TypeError(
            f"{slot} must be one of the parts in ddp_compress.{slot}, or have all that "
            f"recipe.{kind.__name__} has, got {part!r}"
        )
