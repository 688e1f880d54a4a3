"""The GPU that a bench runs on; with ``--pretend`` one that is pretended (see pretended_gpu.py)."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).parents[1]


def add_pretend(parser: argparse.ArgumentParser) -> None:
    """Let the command line do without a GPU."""
    parser.add_argument(
        "--pretend",
        action="store_true",
        help="without a GPU: emulated kernels, on tensors that say they are on one",
    )


@contextmanager
def gpu(pretend: bool) -> Iterator[None]:
    """In here there are a GPU and the CUDA kernels; where there are none, the program ends."""
    if pretend:
        sys.path.append(str(ROOT))  # the pretence is the tests'
        from pretended_gpu import pretended_gpu

        with pretended_gpu():
            yield
        return
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here; --pretend does without one")
    if "ddp_compress::topk" not in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"):
        sys.exit("ddp_compress was built without its CUDA kernels: see docs/gpu.md")
    yield
