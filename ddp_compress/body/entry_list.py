"""Entries whose positions share a list, as bytes."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EntryList:
    """One of the lists that a body is made of.

    Args:
        name: under which it is counted, see `stats.Stats.packages`.
        count: how many entries it holds.
        positions: where they are, [B] uint8.
        values: what they are worth, [B'] uint8.
    """

    name: str
    count: int
    positions: Tensor
    values: Tensor
