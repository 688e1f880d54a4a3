"""Entries that share a list of positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ddp_compress.ops.devices import to_device_of


@dataclass(frozen=True)
class EntryList:
    """Entries that share a list of places: what one place costs, they share.

    Args:
        name: see `stats.Stats.packages`.
        places: [n] int32, ascending in the space of the package; None for all that there are.
        entries: how many there are.
        values: their bytes.
    """

    name: str
    places: Tensor | None
    entries: int
    values: Tensor

    def to_device_of(self, data: Tensor) -> EntryList:
        """The same on the device of a tensor."""
        places = None if self.places is None else to_device_of(self.places, data)
        return EntryList(self.name, places, self.entries, to_device_of(self.values, data))
