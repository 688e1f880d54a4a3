"""Tables of a message that stay on its device, lest every step send them anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddp_compress.message.entries import spans

if TYPE_CHECKING:
    from ddp_compress.message.plan import Tables

BEHIND_ALL = 2**31 - 1  # every position, but not the one in an unused slot


@dataclass(frozen=True)
class DeviceTables:
    """Tables of a message that stay on its device.

    Args:
        edges: 0, the position behind every group's last, and one behind all: [G + 2] int32. Of a
            list of positions, ``searchsorted(positions, edges).diff()`` tells how many are in
            every group, then how many are behind the last.
        uncompressed: the positions that always travel, [D] int32.
        places: the same, within each chunk, int64.
    """

    edges: Tensor
    uncompressed: Tensor
    places: tuple[Tensor, ...]

    @property
    def group_ends(self) -> Tensor:
        """The position behind every group's last parameter, [G] int32."""
        return self.edges[1:-1]

    @classmethod
    def of(cls, tables: Tables, device: torch.device) -> DeviceTables:
        """Send them there, once."""
        positions, ends = tables.uncompressed, tables.group_ends
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([BEHIND_ALL])])
        starts = tables.starts
        parts = zip(starts, spans(positions, starts), strict=True)
        places = [positions[here].long() - start for start, here in parts]
        sent = [each.to(device) for each in places]
        return cls(edges.to(device), positions.to(device), tuple(sent))
