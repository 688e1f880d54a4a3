"""Packages that some of this one needs, and training does not."""

from importlib import import_module
from types import ModuleType


def needed(*names: str, install: str) -> ModuleType:
    """The first module of these that is installed.

    Args:
        names: of modules, each of which would do.
        install: what pip installs it by.

    Raises:
        ImportError: none is. Says what to install.

    Example:
        >>> needed("no_such_package.module", install="no_such_package")
        Traceback (most recent call last):
        ...
        ImportError: no_such_package is needed and not installed: pip install no_such_package
    """
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or ""):
                raise  # it is there, and lacks another
    package = names[0].partition(".")[0]
    raise ImportError(f"{package} is needed and not installed: pip install {install}") from None
