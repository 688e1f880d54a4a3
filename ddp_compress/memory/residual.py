"""Error feedback: what was not sent is added to the next gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ddp_compress import ops

if TYPE_CHECKING:
    from ddp_compress.layout import Sparse


@dataclass(frozen=True)
class Residual:
    """Keep what was not sent: ``r = r + g - sent``.

    Source: Aji & Heafield, Sparse Communication for Distributed Gradient Descent (EMNLP 2017);
    SBC, Alg. 1.

    Example:
        >>> Residual().tensors
        ('residual',)
    """

    @property
    def tensors(self) -> tuple[str, ...]:
        """The residual alone."""
        return ("residual",)

    @property
    def momentum(self) -> float:
        """None is kept."""
        return 0.0

    def retain(self, kept: Mapping[str, Tensor], grad: Tensor) -> None:
        """Move the gradient into the residual: ``r += g``, ``g = 0``."""
        ops.accumulate(kept["residual"], grad, None, 0.0)

    def release(self, kept: Mapping[str, Tensor], sent: Sparse, exact: bool) -> None:
        """Take out what was sent. What quantization lost stays."""
        ops.scatter_add(kept["residual"], 0, [sent.indices], [sent.values], -1.0)
