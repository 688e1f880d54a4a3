"""Elias-Fano code of positions: messages of a size that is known beforehand."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddp_compress import ops
from ddp_compress.codec.errors import bytes_read
from ddp_compress.message.universe import Universe
from ddp_compress.ops.reference.elias_fano import elias_fano_size


@dataclass(frozen=True)
class EliasFano:
    """Low bits as they are, high bits in unary: about 2 + log2(N / K) bits a position.

    Every message of a plan has the same size, so ranks exchange it in one collective. That costs
    4 to 8 % more than `Golomb`. See `reference.elias_fano_encode` for the layout.

    Source: Elias (1974), Efficient storage and retrieval by content and address of static files;
    Fano (1971), On the number of bits required to implement an associative memory.

    Example:
        >>> import torch
        >>> from ddp_compress.message.layout import Layout
        >>> from ddp_compress.message.plan import Plan
        >>> plan = Plan((Layout(("weight",), (1000,)),), "tensor", density=0.01)
        >>> wire = EliasFano().encode(torch.tensor([3, 14, 159], dtype=torch.int32), plan)
        >>> len(wire), EliasFano().decode(wire, plan)
        (11, (tensor([  3,  14, 159], dtype=torch.int32), 11))
    """

    implicit: ClassVar[bool] = False

    def size(self, universe: Universe) -> int:
        """Bytes of every message."""
        return elias_fano_size(universe.numel, universe.k)

    def encode(self, indices: Tensor, universe: Universe) -> Tensor:
        """The ascending positions [K'] int32, at most `universe.k`: uint8 [size]."""
        return ops.elias_fano_encode(indices, universe.numel, universe.k)

    def decode(self, data: Tensor, universe: Universe) -> tuple[Tensor, int]:
        """The positions [K'] int32 and the bytes they took; ValueError where these are bad."""
        indices, status = ops.elias_fano_decode(data, universe.numel, universe.k)
        return indices, bytes_read(
            "elias_fano", status, universe, lambda: f"{self.size(universe)} bytes, got {len(data)}"
        )
