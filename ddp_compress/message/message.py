"""A message: some flat gradients on their way, and what comes back for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ddp_compress.message.arena import Arena
from ddp_compress.message.entries import Entries, span
from ddp_compress.message.layout import Layout
from ddp_compress.message.plan import Plan
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of


@dataclass
class Chunk:
    """One flat gradient [N] with its layout and the memory that belongs to it.

    Args:
        grad: [N].
        layout: its parameters.
        kept: memory, by name: written when the step commits.
        may_be_unused: whether a parameter may have been left out of this rank's step.
        sums: [N], ``residual + grad``, where selecting has left it.
        scale: [], what the gradient was multiplied by; None for 1.
        must_match: anything whose repr ranks must share.

    Attributes:
        future: completed with the averaged gradient when the step commits.
    """

    grad: Tensor
    layout: Layout
    kept: Arena = field(default_factory=Arena)
    may_be_unused: bool = False
    sums: Tensor | None = None
    scale: Tensor | None = None
    must_match: object = None

    def __post_init__(self) -> None:
        devices: list[int | str | torch.device] = [self.grad.device] if self.grad.is_cuda else []
        self.future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)

    @cached_property
    def unused(self) -> list[bool]:
        """Which parameters send nothing in this step: their gradient is all zero.

        With ``find_unused_parameters`` DDP throws away the result for a parameter that no rank
        used. Whoever has no gradient for it must send nothing, or that would be lost.
        """
        sizes = list(self.layout.sizes)
        if not self.may_be_unused:
            return [False] * len(sizes)
        used: list[bool] = torch.stack([part.any() for part in self.grad.split(sizes)]).tolist()
        return [not each for each in used]

    @property
    def used(self) -> list[str]:
        """The names of the others."""
        return [n for n, unused in zip(self.layout.names, self.unused, strict=True) if not unused]


@dataclass(frozen=True)
class Message:
    """Chunks of one dtype that travel together.

    Args:
        chunks: in order.
        plan: what the message may hold.
        step: of the state.
        momentum: factor of the kept momentum in this step; 0 where none is kept.
    """

    chunks: Sequence[Chunk]
    plan: Plan
    step: int
    momentum: float = 0.0

    @property
    def grads(self) -> list[Tensor]:
        """The gradients, chunk by chunk."""
        return [chunk.grad for chunk in self.chunks]

    @property
    def unused(self) -> Tensor | None:
        """Which of the P parameters are unused on this rank, bool; None where none is."""
        flags = [flag for chunk in self.chunks for flag in chunk.unused]
        return host.tensor(flags, dtype=torch.bool) if any(flags) else None

    @property
    def groups(self) -> Tensor:
        """The plan's groups [P], -1 also for parameters that are unused on this rank."""
        unused = self.unused
        return self.plan.groups if unused is None else self.plan.groups.masked_fill(unused, -1)

    @property
    def device(self) -> torch.device:
        """Where gradients, memory and entries are."""
        return self.chunks[0].grad.device

    @property
    def memory_dtype(self) -> torch.dtype:
        """The dtype of memory and of decoded values: fp32, or fp64 for fp64 gradients."""
        return memory_dtype(self.chunks[0].grad.dtype)

    @property
    def kept(self) -> list[Mapping[str, Tensor]]:
        """The memory, chunk by chunk."""
        return [chunk.kept for chunk in self.chunks]

    def values_at(self, indices: Tensor) -> Tensor:
        """The accumulated gradient at ascending positions [K]; 0 where unused. Memory's dtype."""
        parts = []
        for here, chunk in self._places(indices):
            value = chunk.grad[here].to(self.memory_dtype)
            if "momentum" in chunk.kept:
                value = self.momentum * chunk.kept["momentum"][here] + value
            if "residual" in chunk.kept:
                value = chunk.kept["residual"][here] + value
            parts.append(value)
        values, unused = torch.cat(parts), self.unused_at(indices)
        return values if unused is None else values.masked_fill(to_device_of(unused, values), 0.0)

    def unused_at(self, indices: Tensor) -> Tensor | None:
        """Which positions [K] are of parameters unused on this rank, bool; None where none is."""
        unused = self.unused
        if unused is None:
            return None
        bounds = to_device_of(self.plan.bounds, indices)
        owners = torch.searchsorted(bounds, indices.long(), right=True) - 1
        return to_device_of(unused, indices)[owners]

    def kept_at(self, name: str, indices: Tensor) -> Tensor:
        """A tensor of the memory at ascending positions [K]."""
        return torch.cat([chunk.kept[name][here] for here, chunk in self._places(indices)])

    def _places(self, indices: Tensor) -> Iterator[tuple[Tensor, Chunk]]:
        """For every chunk, which of its elements are at these positions."""
        for start, chunk in zip(self.plan.starts, self.chunks, strict=True):
            here = indices[span(indices, start, len(chunk.grad))]  # for the host's, nobody waits
            yield to_device_of(here, chunk.grad).long() - start, chunk

    def accumulated(self) -> Tensor:
        """The accumulated gradient [N], in memory's dtype."""
        return torch.cat([_accumulated(chunk, self.momentum) for chunk in self.chunks])

    def is_finite(self) -> bool:
        """Whether the accumulated gradient is finite everywhere."""
        return all(_is_finite(chunk, self.momentum) for chunk in self.chunks)

    @property
    def scale(self) -> Tensor | None:
        """What its gradients were multiplied by, []; None for 1."""
        return self.chunks[0].scale

    @property
    def must_match(self) -> object:
        """Anything else whose repr ranks must share."""
        return self.chunks[0].must_match

    def clamped(self, values: Tensor) -> Tensor:
        """Finite values [K] within what the gradients' dtype holds, so that no mean overflows.

        What is cut off stays in memory, because only what is sent leaves it.
        """
        limit = min(torch.finfo(self.chunks[0].grad.dtype).max, torch.finfo(torch.float32).max)
        if self.scale is not None:
            return values.clamp(-limit / self.scale, limit / self.scale)
        if limit >= torch.finfo(values.dtype).max:
            return values
        return values.clamp(-limit, limit)


def _accumulated(chunk: Chunk, momentum: float) -> Tensor:
    grad = chunk.grad.to(memory_dtype(chunk.grad.dtype))
    if "momentum" in chunk.kept:
        grad = momentum * chunk.kept["momentum"] + grad
    return chunk.kept["residual"] + grad if "residual" in chunk.kept else grad


def _is_finite(chunk: Chunk, momentum: float) -> bool:
    """Mostly in one pass over the gradient alone."""
    added = [chunk.grad, *(chunk.kept[name] for name in ("momentum",) if name in chunk.kept)]
    wide = [each.to(memory_dtype(chunk.grad.dtype)) for each in added]
    # A finite sum of squares holds no number that could make the finite residual overflow: it would
    # have to be half the spacing of the largest numbers, whose square is infinite.
    if all(torch.dot(each, each).isfinite() for each in wide):
        return True
    return bool(_accumulated(chunk, momentum).isfinite().all())


@dataclass(frozen=True)
class Selection:
    """What a rank would send.

    Args:
        entries: positions and accumulated values.
        finite: whether everything seen was finite; where not, the rest has no meaning.
        writes: entries to write into kept tensors, by name, if the step commits.
    """

    entries: Entries
    finite: bool
    writes: Mapping[str, Entries] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivery:
    """What an exchange brought, to be added in this order on every rank.

    Args:
        sent: what others decoded of this rank, so that memory keeps exactly the rest.
        received: entries to add, in rank order.
        scale: factor of every received value, 1/W for a mean.
        uncompressed: whether these are the entries that travel at every step.
        writes: entries to write into kept tensors, by name.
    """

    sent: Sequence[Entries]
    received: Sequence[Entries]
    scale: float
    uncompressed: bool = False
    writes: Mapping[str, Entries] = field(default_factory=dict)


def memory_dtype(grad: torch.dtype) -> torch.dtype:
    """The dtype that memory of such gradients is kept in.

    Raises:
        ValueError: such gradients cannot be compressed.

    Example:
        >>> memory_dtype(torch.bfloat16)
        torch.float32
    """
    if grad not in _MEMORY_DTYPES:
        expected = ", ".join(map(str, _MEMORY_DTYPES))
        raise ValueError(f"gradient has dtype {grad}, expected one of {expected}")
    return _MEMORY_DTYPES[grad]


_MEMORY_DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
