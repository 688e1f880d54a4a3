"""Whether numbers are finite."""

import torch
from torch import Tensor


def all_finite(flat: Tensor) -> bool:
    """Whether a flat tensor [N] holds neither an infinity nor a NaN.

    Mostly in one pass that writes nothing: a finite sum of squares is of finite numbers.

    Example:
        >>> all_finite(torch.tensor([1.0, 1e30])), all_finite(torch.tensor([torch.inf]))
        (True, False)
    """
    return all_finite_squares(flat) or bool(flat.isfinite().all())


def all_finite_squares(flat: Tensor) -> bool:
    """Whether a flat tensor's sum of squares is finite: one pass that writes nothing.

    Example:
        >>> all_finite_squares(torch.tensor([1.0, 2.0])), all_finite_squares(torch.tensor([1e30]))
        (True, False)
    """
    return bool(torch.dot(flat, flat).isfinite())
