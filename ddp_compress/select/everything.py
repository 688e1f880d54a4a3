"""All entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ddp_compress.message.layout import Scope, Sparse
from ddp_compress.message.message import Selection
from ddp_compress.ops.devices import beside

if TYPE_CHECKING:
    from ddp_compress.message.message import Message


@dataclass(frozen=True)
class Everything:
    """Send every entry; the quantizer alone makes the message small.

    Example:
        >>> Everything().density
        1.0
    """

    density: ClassVar[float] = 1.0
    scope: ClassVar[Scope] = "tensor"
    tensors: ClassVar[Mapping[str, torch.dtype | None]] = {}
    needs: ClassVar[Sequence[str]] = ()

    def __call__(self, message: Message) -> Selection:
        """The accumulated gradient, of all but the exact parameters; zeros where idle."""
        values, positions, idle = message.accumulated(), message.plan.everything, message.idle
        finite = bool(values.isfinite().all())
        if idle is not None:
            values = values * beside((~idle).repeat_interleave(message.plan.bounds.diff()), values)
        if positions is not None:
            positions = beside(positions, values)
            values = values[positions.long()]
        return Selection(Sparse(positions, values), finite)
