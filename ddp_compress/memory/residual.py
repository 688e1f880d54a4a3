"""Error feedback: what was not sent is added to the next gradient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ddp_compress import ops
from ddp_compress.memory.addends import Addends
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.entries import AnyEntries, add_entries


@dataclass(frozen=True)
class Residual:
    """Keep what was not sent: ``r = r + g - sent``.

    Source: Aji & Heafield, Sparse Communication for Distributed Gradient Descent (EMNLP 2017);
    SBC, Alg. 1.

    Example:
        >>> Residual().tensors
        {'residual': None}
    """

    tensors: ClassVar[Mapping[str, torch.dtype | None]] = {"residual": None}
    clip: ClassVar[None] = None

    def momentum_at(self, step: int) -> float:
        """None is kept."""
        return 0.0

    def addends(self, chunk: Chunk) -> Addends:
        """The residual."""
        return Addends(chunk.kept["residual"])

    def places(self, chunk: Chunk) -> Addends:
        """The next residual."""
        return Addends(chunk.kept.next("residual"))

    def retain(self, chunk: Chunk, momentum: float) -> None:
        """Take the gradient into the residual: ``r = r + g``."""
        kept = chunk.kept
        if chunk.sums is None:
            after = kept.next("residual")
            ops.accumulate(kept["residual"], chunk.grad, None, 0.0, after, None)
        kept.advance("residual")

    def release(self, chunk: Chunk, start: int, sent: AnyEntries, uncompressed: bool) -> None:
        """Take out what was sent. What quantization lost stays."""
        add_entries(chunk.kept["residual"], start, [sent], -1.0)
