"""What `CompressionState.metrics` costs a step: steps that are watched and others, in turn.

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
from torch.nn.parallel import DistributedDataParallel

import ddp_compress as dc
from gradients import FixedGradients
from networks import resnet50
from output import show
from ranks import on_ranks

EVERY = 50  # steps from call to call


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(recipe: str, rounds: int) -> list[float]:
    """See `Cost`, in seconds, of this rank."""
    gradients = [torch.randn_like(p) for p in resnet50().parameters()]
    model = DistributedDataParallel(FixedGradients(gradients), bucket_cap_mb=25)
    state = dc.attach(model, recipe)

    def step(asked: bool) -> float:
        state.stages.asked = asked  # in training nobody takes it back
        model.zero_grad()
        return seconds(lambda: model(gradients).backward())

    for _ in range(4):  # DDP has its buckets by then
        step(asked=False)
    costs = Cost([], [], [], [])
    for number in range(rounds):
        costs.call.append(seconds(state.metrics))
        first = step(asked=True)
        for watched_first in (number % 2 == 0, number % 2 == 1):
            one, other = step(asked=watched_first), step(asked=not watched_first)
            watched, without = (one, other) if watched_first else (other, one)
            costs.watched.append(watched - without)
            costs.step.append(without)
        costs.after.append(first - without)
    return [median(values) for values in costs]


class Cost(NamedTuple):
    """A step that is not watched, what one that is takes more, and a call."""

    step: list[float]
    watched: list[float]
    after: list[float]  # the first step after a call
    call: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--recipes", nargs="+", default=["topk", "sbc", "hgc"])
    options = parser.parse_args()
    table = Table(
        *("recipe", "ranks", "step, ms", "watched, ms more", "after a call, ms more", "call, ms"),
        *(f"a call in {EVERY} steps", "in every step"),
    )
    for recipe in options.recipes:
        for ranks in (1, 2):
            figures = on_ranks(ranks, measure, recipe, options.rounds)[0]
            step, watched, after, call = figures
            seldom = (watched * (EVERY - 1) + after + call) / EVERY / step
            always = (after + call) / step
            times = [f"{1000 * each:.2f}" for each in figures]
            table.add_row(recipe, str(ranks), *times, f"{seldom:.2%}", f"{always:.2%}")
    show(table)


if __name__ == "__main__":
    main()
