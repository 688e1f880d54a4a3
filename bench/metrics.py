"""What `CompressionState.metrics` costs a step: two states take steps in turn, one of them asked.

    OMP_NUM_THREADS=1 python bench/metrics.py

Gradients of ResNet-50's shapes through DDP's hook; forward and backward are hardly any work, so a
step is little more than compression: the least that a cost can hide in. Medians over steps, of the
processor's time, which other work on the machine does not count in.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import ddp_compress as dc
from gradients import FixedGradients
from networks import resnet50
from output import show
from ranks import on_ranks

EVERY = 50  # steps from call to call


class Trained:
    """A model of its own, and the step that it takes."""

    def __init__(self, recipe: str, gradients: list[Tensor]) -> None:
        self._ddp = DistributedDataParallel(FixedGradients(gradients), bucket_cap_mb=25)
        self._gradients = gradients
        self.state = dc.attach(self._ddp, recipe)

    def step(self) -> None:
        self._ddp.zero_grad()
        self._ddp(self._gradients).backward()


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(recipe: str, steps: int) -> list[float]:
    """See `Cost`, in seconds, of this rank."""
    gradients = [torch.randn_like(p) for p in resnet50().parameters()]
    off, on = Trained(recipe, gradients), Trained(recipe, gradients)
    on.state.metrics()
    for _ in range(4):  # DDP has its buckets by then
        off.step()
        on.step()
    costs = Cost([], [], [], [])
    for number in range(steps):
        after = number % 4 == 3
        if after:
            costs.call.append(seconds(on.state.metrics))
        if number % 8 < 4:
            without, watched = seconds(off.step), seconds(on.step)
        else:
            watched, without = seconds(on.step), seconds(off.step)
        costs.step.append(without)
        (costs.after if after else costs.watched).append(watched - without)
    return [median(values) for values in costs]


class Cost(NamedTuple):
    """A step of the state that nobody asks; what one of the other takes more; and a call."""

    step: list[float]
    watched: list[float]
    after: list[float]  # the first step after a call
    call: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--recipes", nargs="+", default=["topk", "sbc", "hgc"])
    options = parser.parse_args()
    table = Table(
        *("recipe", "ranks", "step, ms", "watched, ms more", "after a call, ms more", "call, ms"),
        *(f"a call in {EVERY} steps", "in every step"),
    )
    for recipe in options.recipes:
        for ranks in (1, 2):
            figures = on_ranks(ranks, measure, recipe, options.steps)[0]
            step, watched, after, call = figures
            seldom = (watched * (EVERY - 1) + after + call) / EVERY / step
            always = (after + call) / step
            times = [f"{1000 * each:.2f}" for each in figures]
            table.add_row(recipe, str(ranks), *times, f"{seldom:.2%}", f"{always:.2%}")
    show(table)


if __name__ == "__main__":
    main()
