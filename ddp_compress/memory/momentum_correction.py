"""Momentum before sparsification, so that delayed gradients keep their momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ddp_compress import ops

if TYPE_CHECKING:
    from ddp_compress.layout import Sparse


@dataclass(frozen=True)
class MomentumCorrection:
    """Accumulate velocities instead of gradients: ``m = mu m + g``, ``v = v + m - sent``.

    Where an entry was sent, its momentum is zeroed too (factor masking), so that stale momentum
    does not carry the weight on. Exact entries, sent at every step, keep theirs: for them this is
    plain momentum SGD. The optimizer itself must run without momentum.

    Args:
        momentum: mu, in [0, 1).

    Raises:
        ValueError: the momentum lies outside its range.

    Source: Lin et al., Deep Gradient Compression (ICLR 2018), §3.1 and §3.2.

    Example:
        >>> MomentumCorrection(0.9).tensors
        ('residual', 'momentum')
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not (math.isfinite(self.momentum) and 0.0 <= self.momentum < 1.0):
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}")

    @property
    def tensors(self) -> tuple[str, ...]:
        """The velocity that was not sent, and the momentum."""
        return ("residual", "momentum")

    def retain(self, kept: Mapping[str, Tensor], grad: Tensor) -> None:
        """Move the gradient into momentum and residual, leaving zeros."""
        ops.accumulate(kept["residual"], grad, kept["momentum"], self.momentum)

    def release(self, kept: Mapping[str, Tensor], sent: Sparse, exact: bool) -> None:
        """Take out what was sent, and the momentum with it unless it is exact."""
        ops.scatter_add(kept["residual"], 0, [sent.indices], [sent.values], -1.0)
        if not exact:
            kept["momentum"].index_fill_(0, sent.indices.long(), 0.0)
