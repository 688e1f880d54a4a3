"""What a step costs where there is nothing to compress: Python, small ops, and collectives if any.

    python bench/tiny_steps.py
    torchrun --nproc_per_node=2 bench/tiny_steps.py

A model of many tiny parameters in one bucket, whose gradient goes through `push` as DDP's hook
would send it. Beside it, on ranks, DDP's own all-reduce of the same bucket. Microseconds, the
medians of all steps; candidates take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
import torch.distributed as dist
from rich.table import Table
from torch import nn
from tqdm import tqdm

import ddp_compress as dc
from links_methods import make
from output import show

ALL_REDUCE = "all-reduce"
NAMES = ("topk", "sbc", "dgc", "stc", "sign", "majority_vote", "hgc", "smartidx", "rotated")


class Candidate:
    """One way of exchanging a gradient, and what it took."""

    def __init__(self, name: str, parameters: int, numel: int) -> None:
        self.name = name
        self.microseconds: list[float] = []
        self.grad = torch.empty(parameters * numel)
        self._step = self._all_reduce
        if name != ALL_REDUCE:
            tiny = {f"p{i}": nn.Parameter(torch.zeros(numel)) for i in range(parameters)}
            model = nn.ParameterDict(tiny)
            self.state = dc.CompressionState(model, make(name, {}))
            self.layout = self.state.layout(list(model.parameters()))
            self._step = self._push

    def step(self) -> None:
        """Take one, with a new gradient."""
        self.grad.normal_()
        start = time.perf_counter()
        self._step()
        self.microseconds.append(1e6 * (time.perf_counter() - start))

    def _push(self) -> None:
        self.state.push(self.grad, self.layout, last=True).wait()

    def _all_reduce(self) -> None:
        """What DDP does without a hook."""
        self.grad.div_(dist.get_world_size())
        dist.all_reduce(self.grad)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=100)
    parser.add_argument("--numel", type=int, default=50, help="of each parameter; 50 by default")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--recipes", nargs="+", default=NAMES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    names = [*args.recipes, *([ALL_REDUCE] if dist.is_initialized() else [])]
    candidates = [Candidate(name, args.parameters, args.numel) for name in names]
    for _ in tqdm(range(args.steps), leave=False):
        for candidate in candidates:
            candidate.step()
    if dist.is_initialized() and dist.get_rank():
        return
    table = Table("recipe", "µs a step, median", "90 %")
    for each in candidates:
        tenths = statistics.quantiles(each.microseconds, n=10)
        table.add_row(each.name, f"{tenths[4]:.0f}", f"{tenths[8]:.0f}")
    show(table)


if __name__ == "__main__":
    main()
