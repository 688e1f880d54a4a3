"""The CUDA kernels, built for the CPU: `torch.ops.ddp_compress_emulated`. See cuda_runtime.h."""

import subprocess
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


@cache
def load() -> None:
    """Build what is out of date, and load it."""
    subprocess.run(["make", "--silent", "build/emulated.so"], cwd=ROOT, check=True)
    torch.ops.load_library(ROOT / "build" / "emulated.so")
