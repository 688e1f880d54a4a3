"""A GradScaler's scale is taken out of gradients, so that memory is in unscaled units."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler


class LossScale:
    """What the loss of a state's model is multiplied by.

    Example:
        >>> scale = LossScale()
        >>> scale.use(GradScaler("cpu", init_scale=1024.0))
        >>> scale.on(torch.device("cpu"))
        tensor(1024.)
    """

    def __init__(self) -> None:
        self._scaler: GradScaler | None = None
        self._stepped_without = False

    def use(self, scaler: GradScaler) -> None:
        """See `CompressionState.use_scaler`."""
        if not isinstance(scaler, GradScaler):
            raise TypeError(f"scaler must be a torch.amp.GradScaler, got {type(scaler).__name__}")
        if self._stepped_without and scaler.is_enabled():
            raise RuntimeError(
                "use_scaler was called after steps without it, so memory is in the units of scales "
                "gone by: call it before the first step, or load a checkpoint in unscaled units"
            )
        self._scaler = scaler

    def on(self, device: torch.device) -> Tensor | None:
        """A copy of the scale as it is now, [] fp32 on a device; None without an enabled scaler.

        Nobody waits. A scaler that was not used yet gives its initial scale.
        """
        if self._scaler is None or not self._scaler.is_enabled():
            return None
        return self._scaler.scale(torch.ones((), dtype=torch.float32, device=device))

    def stepped(self) -> None:
        """A step was committed."""
        self._stepped_without |= self._scaler is None

    def loaded(self) -> None:
        """Memory was loaded, in unscaled units."""
        self._stepped_without = False

    def __getstate__(self) -> dict[str, Any]:
        """A copy must be told of the scaler again."""
        return self.__dict__ | {"_scaler": None, "_had_scaler": self._scaler is not None}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        if saved.pop("_had_scaler"):
            warnings.warn(
                "this copy of a CompressionState knows no GradScaler: call use_scaler again",
                stacklevel=2,
            )
        self.__dict__.update(saved)


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
