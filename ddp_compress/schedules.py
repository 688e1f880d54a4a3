"""Density and momentum as functions of the step."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ddp_compress.checks import check_count, check_number

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class ExponentialWarmup:
    """See `exponential_warmup`."""

    density: float
    steps: int
    start: float = 0.25

    def __call__(self, step: int) -> float:
        """The density at a step."""
        if step >= self.steps:
            return self.density
        return float(self.start * (self.density / self.start) ** (step / self.steps))


def exponential_warmup(density: float, steps: int, start: float = 0.25) -> ExponentialWarmup:
    """Density that falls exponentially from ``start`` to ``density``, then stays.

    ``start * (density / start) ** (step / steps)``: early gradients change quickly, and sending
    more of them keeps the first steps of training on the dense path.

    Args:
        density: final share of elements sent, in (0, 1].
        steps: length of the warm-up, in steps.
        start: share at step 0, in (0, 1], the paper's by default; never below ``density``. The
            bytes of a warm-up grow with it: see docs/recipes.md.

    Returns:
        A schedule: call it with a step to get the density.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Lin et al., Deep Gradient Compression (ICLR 2018), §3.3.

    Example:
        >>> schedule = exponential_warmup(0.01, steps=100)
        >>> schedule(0), round(schedule(50), 4), schedule(100)
        (0.25, 0.05, 0.01)
    """
    check_density(density, "density")
    check_density(start, "start")
    check_count("steps", steps, least=0)
    return ExponentialWarmup(density, steps, max(density, start))


@dataclass(frozen=True)
class AroundLrChange:
    """See `around_lr_change`."""

    normal: float | Schedule
    changed: float
    at: tuple[int, ...]
    before: int
    after: int

    def __call__(self, step: int) -> float:
        """The value at a step."""
        if any(change - self.before <= step < change + self.after for change in self.at):
            return self.changed
        return self.normal(step) if callable(self.normal) else self.normal


def around_lr_change(
    normal: float | Schedule, changed: float, at: Sequence[int], before: int, after: int
) -> AroundLrChange:
    """Another density, or another momentum, around the steps where the learning rate changes.

    A higher density there helps training off the plateau on which a learning rate is lowered, and
    costs little, since it is short. The momentum may change likewise.

    Args:
        normal: the value at all other steps, or a schedule of it.
        changed: the value around the changes.
        at: the steps that are the first with a new learning rate.
        before: how many steps before each of them count, 0 or more.
        after: how many steps from each of them on count, 0 or more.

    Returns:
        A schedule: call it with a step to get the value.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Hu, Jiang & He, Practical Hybrid Gradient Compression for Federated Learning Systems
    (IJCAI 2024), §3.2.

    Example:
        >>> schedule = around_lr_change(0.01, 0.1, at=[100, 200], before=2, after=3)
        >>> schedule
        AroundLrChange(normal=0.01, changed=0.1, at=(100, 200), before=2, after=3)
        >>> [schedule(step) for step in (97, 98, 102, 103)]
        [0.01, 0.1, 0.1, 0.01]
    """
    for name, value in {"changed": changed, "normal": 0.0 if callable(normal) else normal}.items():
        if not math.isfinite(check_number(name, value)):
            raise ValueError(f"{name} must be finite, got {value!r}")
    check_count("before", before, least=0)
    check_count("after", after, least=0)
    return AroundLrChange(normal, changed, _steps(at, "at"), before, after)


def _steps(value: object, name: str) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a sequence of ints, got {value!r}")
    steps = tuple(value)
    for index, step in enumerate(steps):
        check_count(f"{name}[{index}]", step, least=0)
    return steps


def check_density(value: float, name: str) -> float:
    """Return ``value`` if it is a share in (0, 1], else raise a ValueError that names it.

    Example:
        >>> check_density(0.5, "density")
        0.5
    """
    number = check_number(name, value)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"{name} must lie in (0, 1], got {value!r}")
    return number


def check_momentum(value: float, name: str) -> float:
    """Return ``value`` if it lies in [0, 1), else raise a ValueError that names it.

    Example:
        >>> check_momentum(0.9, "momentum")
        0.9
    """
    number = check_number(name, value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
    return number


def density_at(density: float | Schedule, step: int) -> float:
    """The density at a step; a schedule's is checked.

    Raises:
        ValueError: the schedule gives a number outside (0, 1], or NaN.
    """
    if callable(density):
        return check_density(density(step), f"density schedule {density!r} at step {step}")
    return density


def momentum_at(momentum: float | Schedule, step: int) -> float:
    """The momentum at a step, checked.

    Raises:
        ValueError: the schedule gives a number outside [0, 1), or NaN.
    """
    if callable(momentum):
        return check_momentum(momentum(step), f"momentum schedule {momentum!r} at step {step}")
    return check_momentum(momentum, "momentum")
