"""Loss scaling: whatever a GradScaler does to its scale, memory is kept in unscaled units."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.amp import GradScaler


def scale_of(scaler: GradScaler, device: torch.device) -> Tensor | None:
    """A copy of the scale as it is now, [] fp32 on a device; None where the scaler is disabled.

    Nobody waits. A scaler that was not used yet gives its initial scale.

    Example:
        >>> scale_of(GradScaler("cpu", init_scale=1024.0), torch.device("cpu"))
        tensor(1024.)
    """
    one = torch.ones((), dtype=torch.float32, device=device)
    return scaler.scale(one) if scaler.is_enabled() else None


def unscale(grad: Tensor, scale: Tensor) -> None:
    """``grad /= scale``: exact where the scale is a power of two, but for subnormal results.

    Args:
        grad: [N], changed in place.
        scale: [], on the same device.

    Raises:
        ValueError: the gradient is fp16: unscaled it would underflow.

    Example:
        >>> grad = torch.tensor([3072.0])
        >>> unscale(grad, torch.tensor(1024.0))
        >>> grad
        tensor([3.])
    """
    if grad.dtype == torch.float16:
        raise ValueError(
            "gradient is torch.float16, which cannot hold what a GradScaler's scale keeps from "
            "underflow: keep parameters in fp32 beneath torch.autocast, and in place of "
            "fp16_compress_wrapper take a recipe's value_dtype=torch.float16"
        )
    grad.div_(scale)


def mantissa(scale: Tensor | None) -> float | None:
    """What ranks must share of their scales, so that all round alike: waits for the device.

    Scales that differ by a power of two do no harm: every rank takes out its own, and puts it back.
    So a rank that has joined (``DDP.join``), whose scale stays as it is, may go on.

    Example:
        >>> mantissa(torch.tensor(1024.0)), mantissa(torch.tensor(1000.0))
        (0.5, 0.9765625)
    """
    return None if scale is None else math.frexp(float(scale))[0]
