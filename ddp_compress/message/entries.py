"""Entries of a message: positions and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of


def span(indices: Tensor, start: int, numel: int) -> slice:
    """Which of the ascending positions [K] lie in ``[start, start + numel)``.

    Example:
        >>> span(torch.tensor([1, 4, 5, 9]), start=4, numel=3)
        slice(1, 3, None)
    """
    edges = host.tensor([start, start + numel], dtype=torch.int64)
    begin, end = torch.searchsorted(indices, to_device_of(edges, indices)).tolist()
    return slice(begin, end)


@dataclass(frozen=True)
class Entries:
    """Entries of a message: positions [K] (int32, ascending) and their values [K].

    Without positions the values are those of all positions, [N].
    """

    indices: Tensor | None
    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def positions(self) -> Tensor:
        """The positions, of entries that have them."""
        assert self.indices is not None, "these are entries of all positions"
        return self.indices

    def within(self, start: int, numel: int) -> Entries:
        """The entries of ``[start, start + numel)``, as positions from ``start``."""
        if self.indices is None:
            return Entries(None, self.values[start : start + numel])
        here = span(self.indices, start, numel)
        return Entries(self.indices[here] - start, self.values[here])

    def write_to(self, out: Tensor) -> None:
        """``out[positions] = values`` on a flat tensor [N]."""
        if self.indices is None:
            out.copy_(self.values)
        else:
            out[self.indices.long()] = self.values.to(out.dtype)

    def of(self, flat: Tensor) -> Entries:
        """What a flat tensor [N] holds at these positions, copied."""
        if self.indices is None:
            return Entries(None, flat.clone())
        return Entries(self.indices, flat[self.indices.long()])

    def zero_in(self, out: Tensor, start: int) -> None:
        """``out[positions - start] = 0`` on a flat tensor [n] of finite numbers.

        They are subtracted from themselves, because `add_entries` passes over positions outside
        ``[start, start + n)``, and to cut these off the host would have to wait for a device.
        """
        if self.indices is None:
            out.zero_()
        elif len(out):
            here = (self.indices.long() - start).clamp(0, len(out) - 1)
            add_entries(out, start, [Entries(self.indices, out[here])], -1.0)


def add_entries(out: Tensor, start: int, lists: Sequence[Entries], scale: float) -> None:
    """``out += scale * entries`` for list after list.

    Args:
        out: [n], positions ``[start, start + n)`` of the message. Half types are summed in fp32
            and rounded once.
        start: see ``out``.
        lists: entries of the whole message, all with positions or all without.
        scale: factor of every value.

    Example:
        >>> out = torch.zeros(3)
        >>> entries = Entries(torch.tensor([0, 2], dtype=torch.int32), torch.ones(2))
        >>> add_entries(out, 1, [entries], 0.5)
        >>> out
        tensor([0.0000, 0.5000, 0.0000])
    """
    positions = [entries.indices for entries in lists if entries.indices is not None]
    if positions or not lists:
        ops.scatter_add(out, start, positions, [entries.values for entries in lists], scale)
        return
    wide = out.to(lists[0].values.dtype)
    for entries in lists:
        # Not add_(alpha=scale), which rounds once or twice as the machine likes.
        wide.add_(entries.within(start, len(out)).values * scale)
    if wide is not out:
        out.copy_(wide)
