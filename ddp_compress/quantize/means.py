"""One mean for every group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.ops.devices import to_device_of
from ddp_compress.quantize.no_guess import NoGuess

if TYPE_CHECKING:
    from ddp_compress.message.plan import Plan
    from ddp_compress.message.random_key import RandomKey


@dataclass(frozen=True)
class Means(NoGuess):
    """The mean of a group stands for all its values: no bits a value, 32 a group.

    The mean is exact (see `reference.segment_means`), so every device finds the same one.

    Source: Sattler et al., Sparse Binary Compression (2018), §II, Alg. 2.

    Example:
        >>> counts = torch.tensor([2, 1])
        >>> wire = Means().encode(torch.tensor([1.0, 2.0, -8.0]), counts)
        >>> Means().decode(wire, counts)
        tensor([ 1.5000,  1.5000, -8.0000])
    """

    def size(self, plan: Plan) -> int:
        """Four bytes a group."""
        return 4 * len(plan.ks)

    def encode(
        self,
        values: Tensor,
        counts: Tensor,
        guess: Tensor | None = None,
        key: RandomKey | None = None,
    ) -> Tensor:
        """The groups' means, fp32: uint8 [4 G]."""
        return ops.segment_means(values, counts).view(torch.uint8)

    def decode(
        self,
        data: Tensor,
        counts: Tensor,
        guess: Tensor | None = None,
        key: RandomKey | None = None,
    ) -> Tensor:
        """The mean of its group for every value: fp32 [K]."""
        if len(data) != 4 * len(counts):
            raise ValueError(f"means: got {len(data)} bytes, expected {4 * len(counts)}")
        means = data.clone().view(torch.float32)
        if not means.isfinite().all():
            raise ValueError("means: a mean is not finite")
        return means.repeat_interleave(to_device_of(counts, means), output_size=int(counts.sum()))
