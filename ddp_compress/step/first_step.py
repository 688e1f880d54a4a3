"""What the first step of a model's optimizer tells: mistakes that would go on in silence."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from ddp_compress.step.ddp_model import models_of
from ddp_compress.step.optimizers import parameters_of
from ddp_compress.step.sharded_model import local_of

UNKNOWN = -1  # how many


@dataclass
class Facts:
    """What a state knows, and does not, when an optimizer first steps its parameters.

    Attributes:
        called: a hook, or whoever else sends gradients, has called it.
        needs_no_hook: it is called by something else than a hook.
        knows_scaler: it was told of a GradScaler.
        placed: it was given its first step, or a checkpoint.
    """

    called: bool = False
    needs_no_hook: bool = False
    knows_scaler: bool = False
    placed: bool = False


class FirstStep:
    """Warns, at the first step that applies gradients of some parameters, of what is amiss.

    Args:
        state: the state, in whose hook they should travel.
        parameters: its model's, by name.
        facts: changed by the state as it learns of them.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> adam = torch.optim.Adam([weight])
        >>> adam.state[weight]["step"] = torch.tensor(30.0)
        >>> weight.grad = torch.ones(2)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     FirstStep(adam, {"weight": weight}, Facts(called=True)).check(adam)
        >>> str(caught[0].message)
        'Adam has taken 30 steps, and this CompressionState begins with nothing: ...'
    """

    def __init__(self, state: object, parameters: Mapping[str, Tensor], facts: Facts) -> None:
        self._state = weakref.ref(state)
        self._ids = set(map(id, parameters.values()))
        self._facts = facts
        self._over = False
        self._steps: int | None = None  # before the first, where a closure makes gradients

    def check(self, optimizer: Optimizer, has_closure: bool = False) -> None:
        """An optimizer is about to take a step.

        Args:
            optimizer: perhaps of other parameters.
            has_closure: whether a closure makes the gradients; then the next step shows them.
        """
        if self._over:
            return
        ours = [p for p in parameters_of(optimizer) if id(p) in self._ids]
        if not ours:
            return
        if has_closure and self._steps is None:
            self._steps = _steps_of(optimizer, ours)
            return  # gradients that are there are of passes before it, perhaps in no_sync()
        if not any(p.grad is not None and local_of(p.grad).any() for p in ours):
            return  # or it is to have an optimizer's state made, as DCP does
        self._over = True
        facts = self._facts
        if not (facts.called or facts.needs_no_hook):
            self._warn_of_hook(ours[0])
        if facts.called and not facts.knows_scaler and _scaled(optimizer):
            warnings.warn(
                f"a GradScaler scales the gradients that {type(optimizer).__name__} applies, and "
                "this CompressionState does not know it: residuals are kept in units of a scale "
                "that changes. Call state.use_scaler(scaler) before the first step",
                stacklevel=2,
            )
        steps = _steps_of(optimizer, ours) if self._steps is None else self._steps
        if steps and not facts.placed:
            count = "..." if steps == UNKNOWN else steps
            warnings.warn(
                f"{type(optimizer).__name__} has taken {'some' if steps == UNKNOWN else steps} "
                "steps, and this CompressionState begins with nothing: what ranks still owed to "
                "the model is lost, and a density warm-up starts again. To resume, "
                "load_state_dict what state.state_dict() gave; to begin on purpose, make the state "
                f"with start_step=0, or start_step={count} to go on with its schedules",
                stacklevel=2,
            )

    def _warn_of_hook(self, parameter: Tensor) -> None:
        models = models_of(parameter)
        if not models:
            return  # nobody averages these gradients: perhaps `reduce` will, some steps later
        state = self._state()
        if any(state is theirs for model in models for _, theirs in model._comm_hooks):
            why = (
                "it is registered, and no pass went through its DDP model: call that, not its "
                ".module, and at least one pass before a step outside of no_sync()"
            )
        else:
            why = (
                "no hook calls it. Register one, as dc.attach(model, recipe) does, or "
                "ddp_model.register_comm_hook(state, dc.compress_hook), after the model is wrapped "
                "for the last time. Lightning registers "
                "ddp_comm_hook= on CUDA alone: there give the Trainer "
                "ddp_compress.integrations.lightning.CompressionCallback"
            )
        warnings.warn(
            "this CompressionState compresses nothing: an optimizer has got gradients for its "
            f"model's parameters, and {why}. Where that is meant, as where only reduce is to call "
            "it or the first steps are local ones, say so by state.needs_no_hook()",
            stacklevel=2,
        )


def _steps_of(optimizer: Optimizer, parameters: Iterable[Tensor]) -> int:
    """How many steps an optimizer has taken, as far as what it keeps of parameters tells.

    One may be of having its state made.
    """
    kept = [optimizer.state.get(p, {}) for p in parameters]
    counts = [int(each["step"]) for each in kept if "step" in each]
    if counts:
        return max(counts) if max(counts) > 1 else 0
    return UNKNOWN if any(map(_moved, kept)) else 0


def _moved(kept: Mapping[str, Any]) -> bool:
    tensors = (local_of(value) for value in kept.values() if isinstance(value, Tensor))
    return any(bool(each.any()) for each in tensors)


def _scaled(optimizer: Optimizer) -> bool:
    """Whether it is in a GradScaler's hands. This looks through all objects."""
    return any(id(optimizer) in each._per_optimizer_states for each in _scalers())


def _scalers() -> Iterator[GradScaler]:
    for each in gc.get_objects():
        if issubclass(type(each), GradScaler) and each.is_enabled():
            yield each
