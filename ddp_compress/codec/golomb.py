"""Golomb-Rice code of positions: near their entropy, in messages whose size depends on them."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddp_compress import ops
from ddp_compress.codec.errors import bytes_read
from ddp_compress.message.universe import Universe
from ddp_compress.ops.reference.elias_fano import elias_fano_size
from ddp_compress.ops.reference.golomb import PARAMETER_BITS


@dataclass(frozen=True)
class Golomb:
    """Gaps between positions in Rice's code, with a best parameter for every tensor.

    Within 1 % of the entropy of uniform positions; below it where tensors differ in density. See
    `reference.golomb_encode` for the layout.

    Source: Sattler et al., Sparse Binary Compression (2018), Alg. 3 and 4; Rice (1979), Some
    practical universal noiseless coding techniques.

    Example:
        >>> import torch
        >>> from ddp_compress.message.layout import Layout
        >>> from ddp_compress.message.plan import Plan
        >>> plan = Plan((Layout(("weight",), (1000,)),), "tensor", density=0.01)
        >>> wire = Golomb().encode(torch.tensor([3, 14, 159], dtype=torch.int32), plan)
        >>> len(wire), Golomb().decode(wire, plan)
        (5, (tensor([  3,  14, 159], dtype=torch.int32), 5))
    """

    implicit: ClassVar[bool] = False

    def size(self, universe: Universe) -> int:
        """The most bytes that a message takes: headers, and what `EliasFano` would take.

        With Elias-Fano's `l` for the parameter of Rice's code, all gaps together have at most
        `(N - 1) >> l` ones, and Rice's codes are no longer; the best parameters only help.
        """
        sizes: list[int] = [size for size in universe.bounds.diff().tolist() if size > 0]
        header = sum(size.bit_length() for size in sizes)
        parameters = PARAMETER_BITS * min(universe.k, len(sizes))
        return (header + parameters + 7) // 8 + elias_fano_size(universe.numel, universe.k)

    def encode(self, indices: Tensor, universe: Universe) -> Tensor:
        """The ascending positions [K'] int32, at most `universe.k`: uint8, up to `size` bytes."""
        return ops.golomb_encode(indices, universe.bounds)

    def decode(self, data: Tensor, universe: Universe) -> tuple[Tensor, int]:
        """The positions [K'] int32 and the bytes they took; ValueError where these are bad."""
        indices, status = ops.golomb_decode(data, universe.bounds, universe.k)
        return indices, bytes_read(
            "golomb", status, universe, lambda: f"more than {len(data)} bytes"
        )
