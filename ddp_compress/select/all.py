"""Send every entry."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import Scope
from ddp_compress.message.message import Message
from ddp_compress.message.selection import Selection
from ddp_compress.ops.devices import to_device_of
from ddp_compress.ops.finite import all_finite


@dataclass(frozen=True)
class All:
    """Send every entry; the quantizer alone makes the message small.

    Example:
        >>> All().density
        1.0
    """

    density: ClassVar[float] = 1.0
    scope: ClassVar[Scope] = "tensor"
    tensors: ClassVar[Mapping[str, torch.dtype | None]] = {}
    sends_all: ClassVar[bool] = True

    def __call__(self, message: Message) -> Selection:
        """The accumulated gradient, of all but the uncompressed parameters; zeros where unused."""
        sums, unused = message.sums(), message.unused
        values = sums[0] if len(sums) == 1 else torch.cat(sums)
        finite = all_finite(values)
        if unused is not None:
            used = (~unused).repeat_interleave(message.plan.bounds.diff())
            values = values * to_device_of(used, values)
        positions = message.plan.all_positions
        if positions is not None:
            positions = to_device_of(positions, values)
            values = values[positions.long()]
        return Selection(Entries(positions, values), finite)
