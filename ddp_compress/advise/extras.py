"""Packages that the adviser needs and training does not."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def needed(name: str) -> ModuleType:
    """A package, or what to do about its lack.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError:
        package = name.partition(".")[0]
        raise ImportError(
            f"the adviser needs {package}, which is not installed: pip install {package}"
        ) from None


def rich() -> ModuleType:
    """The package rich, with what is used of it."""
    for name in ("rich.console", "rich.progress", "rich.table"):
        needed(name)
    return needed("rich")
