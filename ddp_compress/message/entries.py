"""Entries of a message: positions and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.message.encoded import EncodedEntries, add_encoded
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of, to_host


def spans(indices: Tensor, starts: Sequence[int]) -> list[slice]:
    """Which of the ascending positions [K] lie from each start on, up to the next.

    Where there are several, the host waits for the positions' device, once.

    Example:
        >>> spans(torch.tensor([1, 4, 5, 9]), [0, 4, 7])
        [slice(0, 1, None), slice(1, 3, None), slice(3, 4, None)]
    """
    edges = [0, len(indices)]
    if len(starts) > 1:
        later = to_device_of(host.tensor(starts[1:], dtype=indices.dtype), indices)
        edges[1:1] = to_host(torch.searchsorted(indices, later)).tolist()
    return [slice(*each) for each in pairwise(edges)]


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
            here = (self.indices - start).clamp(0, len(out) - 1)
            add_entries(out, start, [Entries(self.indices, out.index_select(0, here))], -1.0)


AnyEntries = Entries | EncodedEntries


def add_entries(
    out: Tensor,
    start: int,
    lists: Sequence[AnyEntries],
    scale: float,
    afresh: bool = False,
) -> None:
    """``out += scale * entries`` for list after list.

    Args:
        out: [n], positions ``[start, start + n)`` of the message. Half types are summed in fp32
            and rounded once.
        start: see ``out``.
        lists: entries of the whole message, all with positions, all without, or all encoded.
        scale: factor of every value.
        afresh: whether ``out`` counts as zero before, whatever it holds.

    Example:
        >>> out = torch.zeros(3)
        >>> entries = Entries(torch.tensor([0, 2], dtype=torch.int32), torch.ones(2))
        >>> add_entries(out, 1, [entries], 0.5)
        >>> out
        tensor([0.0000, 0.5000, 0.0000])
    """
    encoded = [entries for entries in lists if isinstance(entries, EncodedEntries)]
    if encoded:
        add_encoded(out, start, encoded, scale, afresh)
        return
    decoded = [entries for entries in lists if isinstance(entries, Entries)]
    positions = [entries.indices for entries in decoded if entries.indices is not None]
    if positions or not decoded:
        values = [entries.values for entries in decoded]
        ops.scatter_add(out, start, positions, values, scale, afresh)
        return
    if afresh:
        out.zero_()
    wide = out.to(decoded[0].values.dtype)
    for entries in decoded:
        # Not add_(alpha=scale), which rounds once or twice as the machine likes.
        wide.add_(entries.values[start : start + len(out)] * scale)
    if wide is not out:
        out.copy_(wide)
