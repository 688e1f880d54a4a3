"""What kernels ask of a plan, step after step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddp_compress.message.entries import spans
from ddp_compress.ops.devices import to_device

if TYPE_CHECKING:
    from ddp_compress.message.plan import Tables


@dataclass(frozen=True)
class DeviceTables:
    """Tables of a message that stay on its device.

    Args:
        group_ends: the position behind every group's last parameter, [G] int32.
        uncompressed: the positions that always travel, [D] int32.
        places: the same, within each chunk, int64.
    """

    group_ends: Tensor
    uncompressed: Tensor
    places: tuple[Tensor, ...]

    @classmethod
    def of(cls, tables: Tables, device: torch.device) -> DeviceTables:
        """Send them there, once."""
        positions, starts = tables.uncompressed, tables.starts
        parts = zip(starts, spans(positions, starts), strict=True)
        places = tuple(to_device(positions[here].long() - start, device) for start, here in parts)
        return cls(to_device(tables.group_ends, device), to_device(positions, device), places)
