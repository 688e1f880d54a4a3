"""Positions as plain int32."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddp_compress.message.universe import Universe

UNUSED = -1


@dataclass(frozen=True)
class Raw:
    """Four bytes a position, little-endian: to see what the other codecs save.

    Every message of a plan has `plan.k` slots; the unused ones hold -1 and come last.

    Example:
        >>> from ddp_compress.message.layout import Layout
        >>> from ddp_compress.message.plan import Plan
        >>> plan = Plan((Layout(("weight",), (200,)),), "tensor", density=0.01)
        >>> wire = Raw().encode(torch.tensor([3], dtype=torch.int32), plan)
        >>> wire
        tensor([  3,   0,   0,   0, 255, 255, 255, 255], dtype=torch.uint8)
        >>> Raw().decode(wire, plan)
        (tensor([3], dtype=torch.int32), 8)
    """

    implicit: ClassVar[bool] = False

    def size(self, universe: Universe) -> int:
        """Bytes of every message."""
        return 4 * universe.k

    def encode(self, indices: Tensor, universe: Universe) -> Tensor:
        """The ascending positions [K'] int32, at most `universe.k`: uint8 [size]."""
        if len(indices) > universe.k:
            raise ValueError(f"raw: got {len(indices)} positions; expected at most {universe.k}")
        return pad(indices, (0, universe.k - len(indices)), value=UNUSED).view(torch.uint8)

    def decode(self, data: Tensor, universe: Universe) -> tuple[Tensor, int]:
        """The positions [K'] int32 and the bytes they took; ValueError where these are bad."""
        size = self.size(universe)
        if len(data) < size:
            raise ValueError(f"raw: the message ends early; expected {size} bytes, got {len(data)}")
        slots = data[:size].clone().view(torch.int32)  # a view needs aligned bytes
        count = int((slots != UNUSED).sum())
        indices, unused = slots[:count], slots[count:]
        _refuse(unused[unused != UNUSED], "follows an unused slot; expected it before them all")
        _refuse(
            indices[(indices < 0) | (indices >= universe.numel)],
            f"lies outside the message; expected it within [0, {universe.numel})",
        )
        _refuse(indices[1:][indices.diff() <= 0], "does not ascend; expected each above the last")
        return indices, size


def _refuse(bad: Tensor, why: str) -> None:
    if len(bad) > 0:
        raise ValueError(f"raw: position {int(bad[0])} {why}")
