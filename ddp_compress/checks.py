"""Arguments of the wrong type or value are refused by name, before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsFloat


def check_number(name: str, value: object, expected: str = "a number") -> float:
    """Return ``value`` as a float, or raise a TypeError that names it; a bool is no number.

    Example:
        >>> check_number("momentum", 0)
        0.0
    """
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    return float(value)


def check_int(name: str, value: object, expected: str = "an int") -> int:
    """Return ``value``, or raise a TypeError that names it; a bool is no int.

    Example:
        >>> check_int("seed", -3)
        -3
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    return value


def check_count(name: str, value: object, least: int) -> None:
    """Raise an error that names an argument which is no integer of ``least`` or more."""
    if check_int(name, value) < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")


def check_one_of(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise an error that names an argument which is none of the choices: all of one type.

    Example:
        >>> check_one_of("codec", "raw", ["golomb", "raw"])
    """
    known = list(choices)
    words = f"{name} must be one of {', '.join(map(str, known))}; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, type(known[0])):
        raise TypeError(words)
    if value not in known:
        raise ValueError(words)
