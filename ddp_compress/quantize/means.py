"""Replace the values of a group by their mean."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.message.context import Context
from ddp_compress.ops.devices import to_device_of
from ddp_compress.quantize.symbols import check_size, read_means


@dataclass(frozen=True)
class Means:
    """The mean of a group stands for all its values: no bits a value, 32 a group.

    The mean is exact (see `reference.segment_means`), so every device finds the same one.

    Source: Sattler et al., Sparse Binary Compression (2018), §II, Alg. 2.

    Example:
        >>> from ddp_compress.message.context import Context
        >>> context = Context(counts=torch.tensor([2, 1]))
        >>> wire = Means().encode(torch.tensor([1.0, 2.0, -8.0]), context)
        >>> Means().decode(wire, context)
        tensor([ 1.5000,  1.5000, -8.0000])
    """

    sum_dtype: ClassVar[torch.dtype] = torch.float32

    def size(self, counts: Tensor) -> int:
        """Four bytes a group."""
        return 4 * len(counts)

    def encode(self, values: Tensor, context: Context) -> Tensor:
        """The groups' means, fp32: uint8 [4 G]."""
        return ops.segment_means(values, context.counts).view(torch.uint8)

    def decode(self, data: Tensor, context: Context) -> Tensor:
        """The mean of its group for every value: fp32 [K]."""
        counts = context.counts
        check_size("means", data, self.size(counts))
        means = read_means("means", data, len(counts))
        return means.repeat_interleave(to_device_of(counts, means), output_size=int(counts.sum()))
