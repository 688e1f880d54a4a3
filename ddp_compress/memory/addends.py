"""What memory adds to a gradient, and where it wants it afterwards."""

from typing import NamedTuple

from torch import Tensor


class Addends(NamedTuple):
    """The accumulated gradient is ``residual + (mu * momentum + gradient)``; None adds nothing.

    Of the next step they are the accumulated gradient, and ``mu * momentum + gradient``.

    Example:
        >>> Addends().residual is None
        True
    """

    residual: Tensor | None = None
    momentum: Tensor | None = None
