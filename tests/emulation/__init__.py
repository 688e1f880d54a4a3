"""The CUDA kernels, built for the CPU: `torch.ops.ddp_compress_emulated`. See cuda_runtime.h."""

from functools import cache

import torch

from tests.make import make


@cache
def load() -> None:
    """Build what is out of date, and load it."""
    torch.ops.load_library(make("build/emulated.so"))
