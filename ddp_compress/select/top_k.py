"""Send the entries of largest magnitude."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_int, check_one_of
from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import SCOPES, Scope
from ddp_compress.message.message import Message
from ddp_compress.message.selection import Selection
from ddp_compress.ops import host
from ddp_compress.ops.reference import salts
from ddp_compress.schedules import Schedule, check_density

NO_SALTS = host.empty(0, dtype=torch.int64)


class Slots(NamedTuple):
    """What a kernel has selected, as it has left it.

    Args:
        indices: positions [S] int32, ascending; on a GPU as many slots as there may be entries,
            then ``2**31 - 1`` in unused ones.
        values: [S], 0 in unused slots.
        finite: [1] bool, see `Selection`.
        counts: how many are of every group, [G] int64.
        means: theirs where one side was selected, [G] fp32; else [0].
    """

    indices: Tensor
    values: Tensor
    finite: Tensor
    counts: Tensor
    means: Tensor


@dataclass(frozen=True)
class TopK:
    """The ``max(1, round(density * N))`` entries of largest magnitude, exactly.

    Zeros are never taken, so that an unused parameter costs nothing.

    Args:
        density: share of the elements, in (0, 1], or a schedule of it.
        scope: ``"tensor"`` holds the density in every parameter, ``"bucket"`` over a bucket,
            ``"model"`` over all parameters (of one dtype).
        seed: break ties by a hash of seed, step and place instead of taking the first.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Example:
        >>> TopK(0.01, "model")
        TopK(density=0.01, scope='model', seed=None)
    """

    density: float | Schedule
    scope: Scope = "tensor"
    seed: int | None = None

    heavier: ClassVar[bool] = False
    sends_all: ClassVar[bool] = False
    tensors: ClassVar[Mapping[str, torch.dtype | None]] = {}

    def __post_init__(self) -> None:
        if not callable(self.density):
            check_density(self.density, "density")
        check_one_of("scope", self.scope, SCOPES)
        if self.seed is not None:
            check_int("seed", self.seed, "an int or None")

    def __call__(self, message: Message) -> Selection:
        """Select from ``residual + (mu * momentum + grad)`` in one pass over memory.

        The sums are left where memory wants them, so that it need not add again.
        """
        indices, values, finite, *_ = self._take(ops.topk, message)
        return Selection(Entries(indices, values), bool(finite))

    def slots(self, message: Message) -> Slots:
        """The same, of which a GPU's host has not heard yet."""
        return Slots(*self._take(ops.topk_slots, message))

    def _take(self, kernel: Callable[..., Sequence[Tensor]], message: Message) -> Sequence[Tensor]:
        plan, memory, chunks = message.plan, message.memory, message.chunks
        residuals, momenta = [], []
        for chunk in chunks:
            residual, momentum = memory.addends(chunk)
            if residual is None:
                residual = torch.zeros_like(chunk.grad, dtype=message.memory_dtype)
            residuals.append(residual)
            momenta += [] if momentum is None else [momentum]
        places = [memory.places(chunk) for chunk in chunks]
        found = kernel(
            [chunk.grad for chunk in chunks],
            residuals,
            momenta,
            message.momentum,
            *(plan.bounds, message.groups, plan.ks, self._salts(message)),
            self.heavier,
            [place.residual for place in places if place.residual is not None],
            [place.momentum for place in places if place.momentum is not None],
        )
        for chunk, place in zip(chunks, places, strict=True):
            chunk.sums = place.residual
        return found

    def _salts(self, message: Message) -> Tensor:
        if self.seed is None:
            return NO_SALTS
        return salts(message.plan.names, self.seed, message.step)
