"""Frameworks that these modules are for, and training does not need."""

from importlib import import_module
from types import ModuleType


def needed(*names: str, extra: str) -> ModuleType:
    """The first module of these that is installed.

    Args:
        names: of modules of a framework.
        extra: the one of ddp_compress that installs it.

    Raises:
        ImportError: none is. Says what to install.

    Example:
        >>> needed("no_such_framework", extra="lightning")
        Traceback (most recent call last):
        ...
        ImportError: no_such_framework is not installed: pip install 'ddp_compress[lightning]'
    """
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or ""):
                raise  # it is there, and lacks another
    missing = names[0].partition(".")[0]
    raise ImportError(f"{missing} is not installed: pip install 'ddp_compress[{extra}]'")
