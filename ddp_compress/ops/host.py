"""Tensors in the host's memory, whatever PyTorch's default device and dtype are.

`torch.set_default_device` and `torch.set_default_dtype` are for a user's own tensors. A factory of
PyTorch's that names no device or no dtype would follow them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tensor(data: Any, *, dtype: torch.dtype) -> Tensor:
    """`torch.tensor` on the host.

    Example:
        >>> with torch.device("meta"):
        ...     tensor([1, 2], dtype=torch.int64)
        tensor([1, 2])
    """
    return torch.tensor(data, dtype=dtype, device="cpu")


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the host.

    Example:
        >>> empty(0, dtype=torch.uint8)
        tensor([], dtype=torch.uint8)
    """
    return torch.empty(*shape, dtype=dtype, device="cpu")


def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    """`torch.zeros` on the host.

    Example:
        >>> zeros(2, dtype=torch.int64)
        tensor([0, 0])
    """
    return torch.zeros(*shape, dtype=dtype, device="cpu")


def full(shape: Sequence[int], value: float, *, dtype: torch.dtype) -> Tensor:
    """`torch.full` on the host.

    Example:
        >>> full((2,), -1, dtype=torch.int64)
        tensor([-1, -1])
    """
    return torch.full(shape, value, dtype=dtype, device="cpu")


def arange(*limits: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """`torch.arange` on the host.

    Example:
        >>> arange(3)
        tensor([0, 1, 2])
    """
    return torch.arange(*limits, dtype=dtype, device="cpu")
