"""Density as a function of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
        start: share at step 0, in (0, 1].

    Returns:
        A schedule: call it with a step to get the density.

    Raises:
        ValueError: an argument lies outside its range.

    Source: Lin et al., Deep Gradient Compression (ICLR 2018), §3.3.

    Example:
        >>> schedule = exponential_warmup(0.01, steps=100)
        >>> schedule(0), round(schedule(50), 4), schedule(100)
        (0.25, 0.05, 0.01)
    """
    check_density(density, "density")
    check_density(start, "start")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}")
    return ExponentialWarmup(density, steps, start)


def check_density(value: float, name: str) -> float:
    """Return ``value`` if it is a share in (0, 1], else raise a ValueError that names it.

    Example:
        >>> check_density(0.5, "density")
        0.5
    """
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"{name} must lie in (0, 1], got {value!r}")
    return number


def density_at(density: float | Schedule, step: int) -> float:
    """The density at a step, checked.

    Raises:
        ValueError: the schedule gives a number outside (0, 1], or NaN.
    """
    if callable(density):
        return check_density(density(step), f"density schedule {density!r} at step {step}")
    return check_density(density, "density")


def momentum_at(momentum: float | Schedule, step: int) -> float:
    """The momentum at a step, checked.

    Raises:
        ValueError: it lies outside [0, 1), or is NaN.
    """
    name = f"momentum schedule {momentum!r} at step {step}" if callable(momentum) else "momentum"
    value = momentum(step) if callable(momentum) else momentum
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
    return float(value)
