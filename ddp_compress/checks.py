"""Refuse arguments of the wrong type or value by name, before anything is made of them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import SupportsFloat


@contextmanager
def named(whose: str) -> Iterator[None]:
    """Put a name before a ValueError that is raised within.

    Example:
        >>> with named("rank 1"):
        ...     check_count("step", -3, least=0)
        Traceback (most recent call last):
        ...
        ValueError: rank 1: step must be 0 or more, got -3
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{whose}: {error}") from None


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


def check_within(name: str, value: object, least: int, most: int) -> None:
    """Raise an error that names an argument which is no integer within these two."""
    if not least <= check_int(name, value) <= most:
        raise ValueError(f"{name} must lie within {least} and {most}, got {value}")


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


def check_type(name: str, value: object, kind: type) -> None:
    """Raise a TypeError that names an argument of another type.

    Example:
        >>> check_type("seed", "3", int)
        Traceback (most recent call last):
        ...
        TypeError: seed must be a int, got str
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")


def check_part(name: str, part: object, kind: type, slot: str) -> None:
    """Raise a TypeError that names an argument which lacks what a protocol asks for.

    Example:
        >>> from ddp_compress.recipe import Memory
        >>> from ddp_compress.memory import Residual
        >>> check_part("memory", Residual(), Memory, slot="memory")
    """
    if isinstance(part, type):
        raise TypeError(
            f"{name} must be an instance, got the class {part.__name__}: write {part.__name__}(...)"
        )
    if not isinstance(part, kind):
        module = kind.__module__.removeprefix("ddp_compress.")
        raise TypeError(
            f"{name} must be one of the parts in ddp_compress.{slot}, or have all that "
            f"{module}.{kind.__name__} has, got {part!r}"
        )


def check_bool(name: str, value: object) -> None:
    """Raise a TypeError that names an argument which is no bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")
