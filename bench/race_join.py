"""Learning curves and paces joined: when each method reached the target."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from race_learn import Race, Run, best_rate, budgets, losses_in, read, target_of, tries
from race_methods import SIXTEEN_BIT, Method


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, in the warm-up and after it."""

    warmup_step_s: float
    step_s: float

    def seconds(self, steps: float, warmup_steps: int) -> float:
        """Of the first so many steps."""
        warm = min(steps, warmup_steps)
        return warm * self.warmup_step_s + (steps - warm) * self.step_s


@dataclass(frozen=True)
class Curve:
    """A learning curve."""

    run: Run
    steps: list[int]
    losses: list[float]
    megabytes: list[float]  # sent by one rank

    @classmethod
    def of(cls, run: Run, folder: Path) -> "Curve":
        points = read(run.file(folder))["history"]
        return cls(
            run,
            [point["step"] for point in points],
            [point["validation_loss"] for point in points],
            [point["sent_bytes"] / 1e6 for point in points],
        )

    def seconds(self, pace: Pace) -> list[float]:
        """When each point was reached."""
        warmup_steps = self.run.method.warmup_steps(self.run.steps)
        return [pace.seconds(step, warmup_steps) for step in self.steps]


@dataclass(frozen=True)
class Learned:
    """What came of one method: its learning rate; of every seed that is done curve and target."""

    method: Method
    lr: float
    tries: int
    seeds: int
    curves: list[Curve]
    targets: list[float]

    def seconds(self, pace: Pace) -> float | None:
        """To the target, in the mean over seeds; None where one has not reached it."""
        found = [
            crossing(curve.seconds(pace), curve.losses, target)
            for curve, target in zip(self.curves, self.targets, strict=True)
        ]
        reached = [each for each in found if each is not None]
        return statistics.mean(reached) if len(reached) == self.seeds else None

    def mean(self, name: str) -> float:
        """The last of a curve's `steps`, `losses` or `megabytes`, in the mean over seeds."""
        return statistics.mean(getattr(curve, name)[-1] for curve in self.curves)


def crossing(xs: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """Where a curve first comes down to the target, on the line between two of its points.

    Args:
        xs: of the points: steps, seconds …
        losses: at them.
        target: the loss to reach.

    Returns:
        None where it stays above.
    """
    for i, loss in enumerate(losses):
        if loss <= target:
            if i == 0:
                return xs[0]
            share = (losses[i - 1] - target) / (losses[i - 1] - loss)
            return xs[i - 1] + share * (xs[i] - xs[i - 1])
    return None


def learned(race: Race, folder: Path) -> list[Learned]:
    """Of every method, as far as its runs are done."""
    losses = losses_in(race, folder)
    found = []
    for method in race.racers:
        rate = best_rate(race, method, losses)
        curves, targets = [], []
        for seed in race.seeds:
            target = target_of(race, seed, losses)
            runs = budgets(race, method, seed, losses)
            done = [run for run in runs if losses.get(run, math.inf) < math.inf]
            if done and target is not None:
                curves.append(Curve.of(done[-1], folder))
                targets.append(target)
        if rate is not None and curves:
            numbers = len(tries(race, method)), len(race.seeds)
            found.append(Learned(method, rate, *numbers, curves, targets))
    return found


def paces(clock: Mapping[str, Any]) -> dict[str, Pace]:
    """By a method's name, of what `race.py clock` wrote."""
    return {
        name: Pace(each["warmup_step_s"], each["step_s"]) for name, each in clock["methods"].items()
    }


def seconds_to_target(
    everyone: Sequence[Learned], clock: Mapping[str, Any]
) -> dict[str, float | None]:
    """Of every method whose pace is known."""
    known = paces(clock)
    return {
        each.method.name: each.seconds(known[each.method.name])
        for each in everyone
        if each.method.name in known
    }


def best_of_sixteen_bits(seconds: Mapping[str, float | None]) -> float | None:
    """The soonest of the 16-bit hooks."""
    reached = [s for name in SIXTEEN_BIT if (s := seconds.get(name)) is not None]
    return min(reached, default=None)
