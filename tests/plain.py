"""The package on plain PyTorch, as where nothing is compiled."""

import pytest

from ddp_compress import ops
from ddp_compress.ops import reference


def without_kernels(patch: pytest.MonkeyPatch) -> None:
    """Put its reference twin in the place of every op."""
    for name in reference.__all__:
        if hasattr(ops, name):
            patch.setattr(ops, name, getattr(reference, name))
