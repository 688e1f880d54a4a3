"""What tests need built."""

import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def make(target: str) -> Path:
    """Build a file if it is out of date, against the torch that runs: no .venv is made for it."""
    torch_folder = f"TORCH={Path(torch.__file__).parent}"
    command = ["make", "--silent", "--old-file=.venv/torch", torch_folder, target]
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / target
