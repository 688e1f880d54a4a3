"""Packages that the adviser needs and training does not."""

from __future__ import annotations

from types import ModuleType

from ddp_compress.optional import needed as installed


def needed(name: str) -> ModuleType:
    """A package, or what to do about its lack.

    Raises:
        ImportError: it is not installed.
    """
    return installed(name, install=name.partition(".")[0])


def rich() -> ModuleType:
    """The package rich, with what is used of it."""
    for name in ("rich.console", "rich.progress", "rich.table"):
        needed(name)
    return needed("rich")
