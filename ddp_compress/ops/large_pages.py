"""Memory in large pages, where the system gives them to whoever asks."""

import ctypes
import sys
from functools import cache
from pathlib import Path

from torch import Tensor

_ADVICE = 14  # MADV_HUGEPAGE
_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


def in_large_pages(tensor: Tensor) -> Tensor:
    """Ask for large pages under a tensor that nothing was written to yet, and return it.

    What is kept is read and written whole at every step, and a processor that looks up a page for
    every 4 kB takes up to twice as long. Linux gives pages of 2 MB on request where
    ``/sys/kernel/mm/transparent_hugepage/enabled`` says ``madvise``, or unasked, or never; where it
    gives none, and on other systems and devices, nothing changes.

    Args:
        tensor: contiguous, of any size.

    Example:
        >>> import torch
        >>> in_large_pages(torch.empty(2)).zero_()
        tensor([0., 0.])
    """
    size = _page_size()
    if not tensor.is_cpu or not size or tensor.nbytes < 2 * size:
        return tensor
    begin = -(-tensor.data_ptr() // size) * size
    end = (tensor.data_ptr() + tensor.nbytes) // size * size
    _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _ADVICE)
    return tensor


@cache
def _page_size() -> int:
    """Bytes of a large page; 0 where there are none."""
    try:
        return int(_SIZE.read_text()) if sys.platform == "linux" else 0
    except (OSError, ValueError):
        return 0


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
