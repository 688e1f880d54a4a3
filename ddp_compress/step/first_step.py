"""What the first step of a model's optimizer tells: mistakes that would go on in silence."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from ddp_compress.step.ddp_model import models_of
from ddp_compress.step.optimizers import parameters_of
from ddp_compress.step.sharded_model import local_of


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
        self._parameters = parameters
        self._facts = facts
        self._over = False

    def check(self, optimizer: Optimizer) -> None:
        """An optimizer is about to take a step."""
        if self._over:
            return
        ids = set(map(id, self._parameters.values()))
        ours = [p for p in parameters_of(optimizer) if id(p) in ids]
        if not any(p.grad is not None and local_of(p.grad).any() for p in ours):
            return  # of another model; or, as DCP's, to have an optimizer's state made
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
        kept = [each for p in ours if _of_training(each := optimizer.state.get(p, {}))]
        if kept and not facts.placed:
            steps = max(int(each.get("step", 0)) for each in kept)
            warnings.warn(
                f"{type(optimizer).__name__} has taken {steps or 'some'} steps, and this "
                "CompressionState begins with nothing: what ranks still owed to the model is lost, "
                "and a density warm-up starts again. To resume, load_state_dict what "
                "state.state_dict() gave; to begin on purpose, make the state with start_step=0, "
                f"or start_step={steps or '...'} to go on with its schedules",
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
                "ddp_compress.integrations.lightning.CompressionCallback. Where only reduce is to "
                "call it, say so by state.needs_no_hook()"
            )
        warnings.warn(
            "this CompressionState compresses nothing: an optimizer has got gradients for its "
            f"model's parameters, and {why}",
            stacklevel=2,
        )


def _of_training(kept: Mapping[str, Any]) -> bool:
    """Whether an optimizer's state is of steps before; not of one that only had it made."""
    if "step" in kept:
        return int(kept["step"]) > 1
    return any(isinstance(value, Tensor) and bool(local_of(value).any()) for value in kept.values())


def _scaled(optimizer: Optimizer) -> bool:
    """Whether it is in a GradScaler's hands. This looks through all objects."""
    return any(id(optimizer) in each._per_optimizer_states for each in _scalers())


def _scalers() -> Iterator[GradScaler]:
    for each in gc.get_objects():
        if issubclass(type(each), GradScaler) and each.is_enabled():
            yield each
