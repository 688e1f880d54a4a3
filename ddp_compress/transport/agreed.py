"""What all ranks know alike: density, step, sizes of frames, what messages teach the next."""

from dataclasses import dataclass, field
from typing import Any

FramePlace = tuple[int, int, bool]
"""A frame's place in a step: its message, its phase, and whether the large sender sends it."""


@dataclass
class Agreed:
    """What all ranks know alike, because every one of them has seen every other's headers.

    What must come out alike before they have met again, such as where a message ends, depends on
    nothing else.

    Attributes:
        density: of the latest step.
        step: the next, whatever one of them has loaded or missed.
        committed: what the last step taught of each of its messages, by number: layout and
            findings.
    """

    density: float = 1.0
    step: int = 0
    committed: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    _capacities: dict[FramePlace, int] = field(default_factory=dict)
    _lengths: dict[FramePlace, tuple[int, int]] = field(default_factory=dict)

    def capacity(self, place: FramePlace, least: int) -> int:
        """Bytes of the next frame in its place."""
        return self._capacities.get(place, least)

    def plan_capacity(self, place: FramePlace, longest: int) -> None:
        """Steady sizes get exactly what they need; varying ones 3 % of room, 64 bytes at least."""
        before, times = self._lengths.get(place, (0, 0))
        times = times + 1 if before == longest else 1
        self._lengths[place] = longest, times
        steady = times > 2  # twice is chance: lengths may vary by a few bytes
        self._capacities[place] = longest if steady else longest + max(64, longest // 32)
