"""Send every value on its own, in a floating-point type."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_compress.checks import check_one_of
from ddp_compress.message.context import Context
from ddp_compress.quantize.symbols import check_size

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Values:
    """Every value on its own, in a floating-point type.

    Values too large for the type are sent as its largest number; error feedback keeps the rest.

    Args:
        dtype: torch.float32, torch.float16 or torch.bfloat16.

    Raises:
        TypeError: no dtype.
        ValueError: another dtype.

    Example:
        >>> from ddp_compress.message.context import Context
        >>> context = Context(counts=torch.tensor([2]))
        >>> wire = Values(torch.float16).encode(torch.tensor([1.5, -1e6]), context)
        >>> Values(torch.float16).decode(wire, context)
        tensor([ 1.5000e+00, -6.5504e+04])
    """

    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_one_of("value_dtype", self.dtype, DTYPES)

    @property
    def sum_dtype(self) -> torch.dtype:
        """Their own."""
        return self.dtype

    def size(self, counts: Tensor) -> int:
        """Bytes for all K values."""
        return int(counts.sum()) * self.dtype.itemsize

    def encode(self, values: Tensor, context: Context) -> Tensor:
        """The values [K], cast: uint8 [K * itemsize]."""
        if values.dtype != self.dtype:
            limit = torch.finfo(self.dtype).max
            values = values.clamp(-limit, limit).to(self.dtype)
        return values.view(torch.uint8)

    def decode(self, data: Tensor, context: Context) -> Tensor:
        """The values [K], fp32."""
        check_size("values", data, self.size(context.counts))
        values = data.clone().view(self.dtype).float()
        if not values.isfinite().all():
            raise ValueError("values: a value is not finite")
        return values
