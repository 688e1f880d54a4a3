"""Examples as tests run them: where ranks have met already, for libraries take long to import."""

import os
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, folder: Path, words: str) -> dict[str, Any]:
    """Run a script in a folder; the names that it leaves."""
    folder.mkdir(exist_ok=True)
    file, before = str(EXAMPLES / script), os.getcwd()
    with (
        patch.object(sys, "argv", [file, *words.split()]),
        patch.object(sys, "path", [str(EXAMPLES), *sys.path]),
        patch.object(dist, "init_process_group"),
        patch.object(dist, "destroy_process_group"),  # these ranks have more to do
    ):
        os.chdir(folder)
        try:
            return runpy.run_path(file, run_name="__main__")
        finally:
            os.chdir(before)
