"""The package on plain PyTorch, as where nothing is compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from ddp_compress import ops
from ddp_compress.ops import reference


@contextmanager
def without_kernels() -> Iterator[None]:
    """Its reference twin in the place of every op."""
    twins = {name: getattr(reference, name) for name in reference.__all__ if hasattr(ops, name)}
    with patch.multiple(ops, **twins):
        yield
