"""Tensors in the host's memory, whatever PyTorch's default device and dtype are.

`torch.set_default_device` and `torch.set_default_dtype` are for a user's own tensors. A factory of
PyTorch's that names no device or no dtype would follow them.
"""

import ctypes
import zlib
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


# PyTorch's own ways from a tensor to its bytes need numpy, which a user may lack.


def from_bytes(data: bytes) -> Tensor:
    """A copy of some bytes, [B] uint8.

    Example:
        >>> from_bytes(b"ab")
        tensor([97, 98], dtype=torch.uint8)
    """
    copy = empty(len(data), dtype=torch.uint8)
    _memory(copy)[:] = data
    return copy


def to_bytes(data: Tensor) -> bytes:
    """A copy of a tensor's bytes.

    Example:
        >>> to_bytes(tensor([97, 98], dtype=torch.uint8))
        b'ab'
    """
    data = data.contiguous()
    return bytes(_memory(data))


def crc32(data: Tensor, before: int = 0) -> int:
    """`zlib.crc32` of a tensor's bytes, behind bytes whose own is ``before``.

    Example:
        >>> crc32(from_bytes(b"ient"), zlib.crc32(b"grad")) == zlib.crc32(b"gradient")
        True
        >>> crc32(from_bytes(b""), before=7)
        7
    """
    data = data.contiguous()
    return zlib.crc32(_memory(data), before)


_memory_view = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)
_PYBUF_WRITE = 0x200


def _memory(data: Tensor) -> memoryview:
    """A contiguous tensor's bytes, as long as it lives.

    Raises:
        ValueError: it has none on the host.
    """
    if not data.is_cpu or (data.nbytes and not data.data_ptr()):
        raise ValueError(
            f"expected a tensor in the host's memory, got a {type(data).__name__} of "
            f"{data.nbytes} bytes on {data.device}"
        )
    if not data.nbytes:  # zlib takes no address for a first call, and forgets what was before
        return memoryview(bytearray())
    view: memoryview = _memory_view(data.data_ptr(), data.nbytes, _PYBUF_WRITE)
    return view
