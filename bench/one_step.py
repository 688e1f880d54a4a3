"""What a step costs beside its network: kernels, and Python.

    python bench/one_step.py
    python bench/one_step.py --model resnet18 --steps 15
    torchrun --nproc_per_node=2 bench/one_step.py

The gradient of many tiny parameters, or of ResNet-18, in one bucket, goes through `push` as DDP's
hook would send it. Beside it, on ranks, DDP's own all-reduce of the same bucket. Medians of all
steps; candidates take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from rich.table import Table
from torch import nn
from tqdm import tqdm

import ddp_compress as dc
from links_methods import make, split
from networks import resnet18
from output import show

ALL_REDUCE = "all-reduce"
RECIPES = {
    "tiny": ["topk", "sbc", "dgc", "stc", "sign", "majority_vote", "hgc", "smartidx", "rotated"],
    "resnet18": [
        "topk",
        "sbc",
        "sbc,density=0.1",
        "smartidx,density=0.1",
        "sign",
        "rotated,bits=4",
        "rotated,bits=4,transform=kashin",
    ],
}


def tiny(parameters: int = 100, numel: int = 50) -> nn.Module:
    """Many parameters of a few elements."""
    return nn.ParameterDict({f"p{i}": nn.Parameter(torch.zeros(numel)) for i in range(parameters)})


MODELS: dict[str, Callable[[], nn.Module]] = {"tiny": tiny, "resnet18": resnet18}


class Candidate:
    """One way of exchanging a gradient, and what it took."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name = name
        self.milliseconds: list[float] = []
        self.grad = torch.empty(sum(p.numel() for p in model.parameters()))
        self._step = self._all_reduce
        if name != ALL_REDUCE:
            self.state = dc.CompressionState(model, make(*split(name)))
            self.layout = self.state.layout(list(model.parameters()))
            self._step = self._push

    def step(self) -> None:
        """Take one, with a new gradient."""
        self.grad.normal_()
        start = time.perf_counter()
        self._step()
        self.milliseconds.append(1e3 * (time.perf_counter() - start))

    def _push(self) -> None:
        self.state.push(self.grad, self.layout, last=True).wait()

    def _all_reduce(self) -> None:
        """What DDP does without a hook."""
        self.grad.div_(dist.get_world_size())
        dist.all_reduce(self.grad)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--recipes", nargs="+", help="with words, such as sbc,density=0.01")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    names = args.recipes or RECIPES[args.model]
    names += [ALL_REDUCE] if dist.is_initialized() else []
    model = MODELS[args.model]()
    candidates = [Candidate(name, model) for name in names]
    for _ in tqdm(range(args.steps), leave=False):
        for candidate in candidates:
            candidate.step()
    if dist.is_initialized() and dist.get_rank():
        return
    table = Table("recipe", "ms a step, median", "90 %")
    for each in candidates:
        tenths = statistics.quantiles(each.milliseconds, n=10)
        table.add_row(each.name, f"{tenths[4]:.3f}", f"{tenths[8]:.3f}")
    show(table)


if __name__ == "__main__":
    main()
