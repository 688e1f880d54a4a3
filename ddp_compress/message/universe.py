"""Where the positions of a list may lie."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Universe(Protocol):
    """Where a list of positions may lie: all that a codec must know. A `Plan` is one."""

    @property
    def bounds(self) -> Tensor:
        """Offsets of the parameters, [P + 1] int64, from 0."""

    @property
    def numel(self) -> int:
        """Positions in all."""

    @property
    def k(self) -> int:
        """The most positions in a list."""

    @property
    def all_positions(self) -> Tensor | None:
        """The positions that a dense message holds, int32; None for simply all."""


@dataclass(frozen=True)
class CountedUniverse:
    """A `Universe` for an exact count of positions, known to both sides.

    Example:
        >>> import torch
        >>> CountedUniverse(torch.tensor([0, 600, 602]), k=5).numel
        602
    """

    bounds: Tensor
    k: int

    @property
    def numel(self) -> int:
        """Positions in all."""
        return int(self.bounds[-1])

    @property
    def all_positions(self) -> None:
        """Simply all."""
