"""The package on plain PyTorch, as where nothing is compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from ddp_compress import ops
from ddp_compress.ops import reference


@contextmanager
def without_kernels() -> Iterator[None]:
    """Its reference twin in the place of every op."""
    twins = {n: twin for n, twin in vars(reference).items() if callable(twin) and hasattr(ops, n)}
    with patch.multiple(ops, **twins):
        yield
