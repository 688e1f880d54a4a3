"""No bytes for positions, because all entries are sent."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddp_compress.message.universe import Universe
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of


@dataclass(frozen=True)
class Implicit:
    """No bytes at all: all entries travel, but for the uncompressed parameters'.

    Positions are None, or all that there are where some parameters are uncompressed.

    Example:
        >>> from ddp_compress.message.layout import Layout
        >>> from ddp_compress.message.plan import Plan
        >>> plan = Plan((Layout(("weight", "bias"), (4, 2)),), "tensor", 1.0, min_numel=3)
        >>> wire = Implicit().encode(None, plan)
        >>> len(wire), Implicit().decode(wire, plan)
        (0, (tensor([0, 1, 2, 3], dtype=torch.int32), 0))
    """

    implicit: ClassVar[bool] = True

    def size(self, universe: Universe) -> int:
        """None."""
        return 0

    def encode(self, indices: Any, universe: Universe) -> Tensor:
        """uint8 [0]."""
        return host.empty(0, dtype=torch.uint8)

    def decode(self, data: Tensor, universe: Universe) -> tuple[Any, int]:
        """The positions, and no bytes that they took."""
        positions = universe.all_positions
        return None if positions is None else to_device_of(positions, data), 0
