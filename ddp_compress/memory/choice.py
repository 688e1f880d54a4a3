"""The memory that a recipe needs for its momentum."""

from ddp_compress.memory.momentum_correction import MomentumCorrection
from ddp_compress.memory.residual import Residual
from ddp_compress.schedules import Schedule, check_momentum


def memory_with(momentum: float | Schedule) -> MomentumCorrection | Residual:
    """The residual alone where the momentum is 0, else momentum before compression.

    Args:
        momentum: in [0, 1), or a schedule of it, which keeps momentum even where it is 0.

    Raises:
        TypeError: the momentum is no number.
        ValueError: the momentum lies outside its range.

    Example:
        >>> memory_with(0.0), memory_with(0.9)
        (Residual(), MomentumCorrection(momentum=0.9, clip=None))
    """
    if callable(momentum) or check_momentum(momentum, "momentum"):
        return MomentumCorrection(momentum)
    return Residual()
