"""The entries of largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ddp_compress import ops
from ddp_compress.layout import SCOPES, Scope, Sparse
from ddp_compress.schedules import Schedule, check_density

if TYPE_CHECKING:
    from ddp_compress.message import Message
    from ddp_compress.recipe import Memory


@dataclass(frozen=True)
class TopK:
    """The ``max(1, round(density * N))`` entries of largest magnitude, exactly.

    Of equal magnitudes the first positions are taken; zeros never are, so that an idle parameter
    costs nothing.

    Args:
        density: share of the elements, in (0, 1], or a schedule of it.
        scope: ``"tensor"`` holds the density in every parameter, ``"bucket"`` over a bucket,
            ``"model"`` over all parameters (of one dtype).

    Raises:
        ValueError: an argument lies outside its range.

    Example:
        >>> TopK(0.01, "model")
        TopK(density=0.01, scope='model')
    """

    density: float | Schedule
    scope: Scope = "tensor"

    heavier: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not callable(self.density):
            check_density(self.density, "density")
        if self.scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}; got {self.scope!r}")

    def __call__(self, message: Message, memory: Memory) -> tuple[Sparse, bool]:
        """Select from ``residual + (mu * momentum + grad)`` in one pass that writes nothing."""
        kept, plan = message.kept, message.plan
        indices, values, finite = ops.topk(
            message.grads,
            [tensors["residual"] for tensors in kept],
            [tensors["momentum"] for tensors in kept if "momentum" in tensors],
            memory.momentum,
            plan.bounds,
            message.groups,
            plan.ks,
            self.heavier,
        )
        return Sparse(indices, values), bool(finite)
