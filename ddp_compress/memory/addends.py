"""What memory adds to a gradient."""

from typing import NamedTuple

from torch import Tensor


class Addends(NamedTuple):
    """The accumulated gradient is ``residual + (mu * momentum + gradient)``; None adds nothing.

    Example:
        >>> Addends().residual is None
        True
    """

    residual: Tensor | None = None
    momentum: Tensor | None = None
