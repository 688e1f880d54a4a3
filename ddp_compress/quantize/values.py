"""Every value on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddp_compress.checks import check_one_of
from ddp_compress.quantize.no_guess import NoGuess

if TYPE_CHECKING:
    from ddp_compress.message.plan import Plan
    from ddp_compress.message.random_key import RandomKey

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Values(NoGuess):
    """Every value on its own, in a floating-point type.

    Values too large for the type are sent as its largest number; error feedback keeps the rest.

    Args:
        dtype: torch.float32, torch.float16 or torch.bfloat16.

    Raises:
        TypeError: no dtype.
        ValueError: another dtype.

    Example:
        >>> values = torch.tensor([1.5, -1e6])
        >>> wire = Values(torch.float16).encode(values, torch.tensor([2]))
        >>> Values(torch.float16).decode(wire, torch.tensor([2]))
        tensor([ 1.5000e+00, -6.5504e+04])
    """

    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_one_of("value_dtype", self.dtype, DTYPES)

    def size(self, plan: Plan) -> int:
        """Bytes for all K values."""
        return plan.k * self.dtype.itemsize

    def encode(
        self,
        values: Tensor,
        counts: Tensor,
        guess: Tensor | None = None,
        key: RandomKey | None = None,
    ) -> Tensor:
        """The values [K], cast: uint8 [K * itemsize]."""
        limit = torch.finfo(self.dtype).max
        return values.clamp(-limit, limit).to(self.dtype).view(torch.uint8)

    def decode(
        self,
        data: Tensor,
        counts: Tensor,
        guess: Tensor | None = None,
        key: RandomKey | None = None,
    ) -> Tensor:
        """The values [K], fp32."""
        expected = int(counts.sum()) * self.dtype.itemsize
        if len(data) != expected:
            raise ValueError(f"values: got {len(data)} bytes, expected {expected}")
        values = data.clone().view(self.dtype).float()
        if not values.isfinite().all():
            raise ValueError("values: a value is not finite")
        return values
