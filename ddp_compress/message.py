"""A message: some flat gradients on their way, and what comes back for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddp_compress.layout import Layout, Plan, Sparse


@dataclass
class Chunk:
    """One flat gradient [N] with its layout and the memory that belongs to it.

    Its future is completed with the averaged gradient when the step commits.
    """

    grad: Tensor
    layout: Layout
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    future: torch.futures.Future[Tensor] = field(default_factory=torch.futures.Future)


@dataclass(frozen=True)
class Message:
    """Chunks of one dtype that travel together."""

    chunks: Sequence[Chunk]
    plan: Plan
    step: int

    @property
    def grads(self) -> list[Tensor]:
        """The gradients, chunk by chunk."""
        return [chunk.grad for chunk in self.chunks]

    @property
    def memory_dtype(self) -> torch.dtype:
        """The dtype of memory and of decoded values: fp32, or fp64 for fp64 gradients."""
        return memory_dtype(self.chunks[0].grad.dtype)

    @property
    def kept(self) -> list[Mapping[str, Tensor]]:
        """The memory, chunk by chunk."""
        return [chunk.kept for chunk in self.chunks]

    def exact_values(self, momentum: float) -> Tensor:
        """The accumulated gradient at the plan's exact positions: [D], in the gradient's dtype."""
        positions = Sparse(self.plan.exact, self.plan.exact)
        parts = []
        for start, chunk in zip(self.plan.starts, self.chunks, strict=True):
            here = positions.within(start, len(chunk.grad)).indices.long()
            value = chunk.grad[here].to(self.memory_dtype)
            if "momentum" in chunk.kept:
                value = momentum * chunk.kept["momentum"][here] + value
            parts.append(chunk.kept["residual"][here] + value)
        exact = torch.cat(parts)
        dtype = self.chunks[0].grad.dtype
        if exact.dtype == dtype:
            return exact
        limit = torch.finfo(dtype).max
        # What rounding loses stays in the residual; NaN and inf stay what they are.
        return torch.where(exact.isfinite(), exact.clamp(-limit, limit), exact).to(dtype)


@dataclass(frozen=True)
class Delivery:
    """What an exchange brought, to be added in this order on every rank.

    Args:
        sent: what others decoded of this rank, so that memory keeps exactly the rest.
        received: entries to add, in rank order.
        scale: factor of every received value, 1/W for a mean.
        exact: whether these are the entries that travel at every step.
    """

    sent: Sparse
    received: Sequence[Sparse]
    scale: float
    exact: bool = False


def memory_dtype(grad: torch.dtype) -> torch.dtype:
    """The dtype that memory of such gradients is kept in.

    Example:
        >>> memory_dtype(torch.bfloat16)
        torch.float32
    """
    return torch.float64 if grad == torch.float64 else torch.float32
