"""Momentum before sparsification, so that delayed gradients keep their momentum."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ddp_compress import ops
from ddp_compress.memory.addends import Addends
from ddp_compress.memory.clip import check_clip
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.entries import AnyEntries, add_entries
from ddp_compress.schedules import Schedule, check_momentum, momentum_at


@dataclass(frozen=True)
class MomentumCorrection:
    """Accumulate velocities instead of gradients: ``m = mu m + g``, ``v = v + m - sent``.

    Where an entry was sent, its momentum is zeroed too (factor masking), so that stale momentum
    does not carry the weight on. Uncompressed entries, sent at every step, keep theirs: for them
    this is plain momentum SGD. The optimizer itself must run without momentum.

    Args:
        momentum: mu, in [0, 1), or a schedule of it.
        clip: None, or on W ranks ``clip / sqrt(W)`` is the most that the norm of a parameter's
            gradient may be on a rank; see `clip.clip_gradient`.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument lies outside its range.

    Source: Lin et al., Deep Gradient Compression (ICLR 2018), §3.1 and §3.2.

    Example:
        >>> MomentumCorrection(0.9).tensors
        {'residual': None, 'momentum': None}
    """

    momentum: float | Schedule = 0.9
    clip: float | None = None

    tensors: ClassVar[Mapping[str, torch.dtype | None]] = {"residual": None, "momentum": None}

    def __post_init__(self) -> None:
        check_clip(self.clip)
        if not callable(self.momentum):
            check_momentum(self.momentum, "momentum")

    def momentum_at(self, step: int) -> float:
        """The factor in a step."""
        return momentum_at(self.momentum, step)

    def addends(self, chunk: Chunk) -> Addends:
        """The velocity that was not sent, and the momentum."""
        return Addends(chunk.kept["residual"], chunk.kept["momentum"])

    def places(self, chunk: Chunk) -> Addends:
        """The next residual and momentum."""
        return Addends(chunk.kept.next("residual"), chunk.kept.next("momentum"))

    def retain(self, chunk: Chunk, momentum: float) -> None:
        """Take the gradient into momentum and residual."""
        kept = chunk.kept
        if chunk.sums is None:
            before = kept["residual"], chunk.grad, kept["momentum"]
            ops.accumulate(*before, momentum, kept.next("residual"), kept.next("momentum"))
        for slot in self.tensors:
            kept.advance(slot)

    def release(self, chunk: Chunk, start: int, sent: AnyEntries, uncompressed: bool) -> None:
        """Take out what was sent, and the momentum with it unless it is uncompressed."""
        add_entries(chunk.kept["residual"], start, [sent], -1.0)
        if not uncompressed:
            sent.zero_in(chunk.kept["momentum"], start)
