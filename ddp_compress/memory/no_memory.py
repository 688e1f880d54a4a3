"""No memory: what was not sent is gone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ddp_compress.memory.addends import Addends
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.entries import AnyEntries


@dataclass(frozen=True)
class NoMemory:
    """Keep nothing: for what is unbiased, so that errors are noise and cancel in time.

    Example:
        >>> NoMemory().tensors
        {}
    """

    tensors: ClassVar[Mapping[str, torch.dtype | None]] = {}
    clip: ClassVar[None] = None

    def momentum_at(self, step: int) -> float:
        """None is kept."""
        return 0.0

    def addends(self, chunk: Chunk) -> Addends:
        """Nothing is added."""
        return Addends()

    def places(self, chunk: Chunk) -> Addends:
        """Sums are not kept."""
        return Addends()

    def retain(self, chunk: Chunk, momentum: float) -> None:
        """Nothing is kept."""

    def release(self, chunk: Chunk, start: int, sent: AnyEntries, uncompressed: bool) -> None:
        """Nothing is kept."""
