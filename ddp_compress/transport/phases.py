"""Generators that launch collectives, and who drives them."""

from collections.abc import Generator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Work(Protocol):
    """A collective under way."""

    def wait(self) -> object:
        """Block until it is done."""


Phases = Generator[Work, None, T]
"""Launches collectives, and yields each before it needs the result; what it comes to is a T.

All ranks launch in the same order, so whoever drives it decides when to wait, never what is first.
"""


def drive(phases: Phases[T]) -> T:
    """What it comes to, driven to its end here and now."""
    while True:
        try:
            next(phases)
        except StopIteration as end:
            outcome: T = end.value
            return outcome
