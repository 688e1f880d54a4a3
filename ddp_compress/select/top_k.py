"""The entries of largest magnitude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_int, check_one_of
from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import SCOPES, Scope
from ddp_compress.message.message import Selection
from ddp_compress.ops import host
from ddp_compress.ops.reference import salts
from ddp_compress.schedules import Schedule, check_density

if TYPE_CHECKING:
    from ddp_compress.message.message import Message


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
    needs: ClassVar[Sequence[str]] = ("residual",)

    def __post_init__(self) -> None:
        if not callable(self.density):
            check_density(self.density, "density")
        check_one_of("scope", self.scope, SCOPES)
        if self.seed is not None:
            check_int("seed", self.seed, "an int or None")

    @property
    def tensors(self) -> Mapping[str, torch.dtype | None]:
        """None are kept."""
        return {}

    def __call__(self, message: Message) -> Selection:
        """Select from ``residual + (mu * momentum + grad)`` in one pass over memory.

        On a CUDA device that pass leaves the sum beside the residual, to become it when the step
        commits: two thirds of the traffic that adding anew would cost. On the host, where memory is
        not as fast, nothing is written.
        """
        kept, plan = message.kept, message.plan
        residuals = [tensors["residual"] for tensors in kept]
        momenta = [tensors["momentum"] for tensors in kept if "momentum" in tensors]
        on_device = message.device.type == "cuda" and not momenta
        sums = [chunk.kept.next("residual") for chunk in message.chunks] if on_device else []
        indices, values, finite = ops.topk(
            message.grads,
            residuals,
            momenta,
            message.momentum,
            plan.bounds,
            message.groups,
            plan.ks,
            self._salts(message),
            self.heavier,
            sums,
        )
        for chunk, left in zip(message.chunks, sums, strict=False):
            chunk.sums = left
        return Selection(Entries(indices, values), bool(finite))

    def _salts(self, message: Message) -> Tensor:
        if self.seed is None:
            return host.empty(0, dtype=torch.int64)
        return salts(message.plan.names, self.seed, message.step)
