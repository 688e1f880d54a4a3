"""Compression of a model that Accelerate has prepared."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize

from torch import nn

from ddp_compress import checkpoints, hook
from ddp_compress.recipe import Recipe
from ddp_compress.step.state import CompressionState
from ddp_compress.transport.together import on_all, on_any

if TYPE_CHECKING:
    from accelerate import Accelerator

_States = WeakValueDictionary[str, CompressionState]
_states: WeakKeyDictionary[Any, _States] = WeakKeyDictionary()  # by accelerator, by name


def attach(
    accelerator: Accelerator,
    model: nn.Module,
    recipe: Recipe | str,
    *,
    name: str = "compression",
    **options: Any,
) -> CompressionState:
    """Let the gradients of a model travel compressed, once ``accelerator.prepare`` has wrapped it.

    Besides what `ddp_compress.attach` does it tells of the accelerator's GradScaler, and keeps
    every rank's state beside the files of ``accelerator.save_state``, in a folder ``name`` that
    all hosts share; ``accelerator.load_state`` takes it back, on another number of ranks too.

    Args:
        accelerator: which has prepared the model.
        model: what ``prepare`` has returned of it.
        recipe: a recipe, or its name in `ddp_compress.recipes`.
        name: of the folder, for a second model of the same accelerator another one.
        options: more of `ddp_compress.attach`: the recipe's arguments where it is given by name,
            ``within``, ``min_numel`` and so on.

    Returns:
        The state, for statistics and metrics. With one process nothing travels: it says so, and the
        state stays empty.

    Raises:
        TypeError, ValueError: see `ddp_compress.attach`; or ``name`` is taken.

    Example::

        from accelerate import Accelerator
        from ddp_compress.integrations.accelerate import attach

        accelerator = Accelerator()
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        state = attach(accelerator, model, "topk", density=0.01)
    """
    taken = _states.setdefault(accelerator, WeakValueDictionary())
    if name in taken:
        raise ValueError(
            f"this accelerator keeps another model's state as {name!r}: give this one another "
            "name, as in attach(accelerator, model, recipe, name='discriminator')"
        )
    if accelerator.num_processes == 1:
        warnings.warn(
            "nothing is compressed: there is one process, between which no gradients travel. Start "
            "it by accelerate launch --num_processes=4, or torchrun",
            stacklevel=2,
        )
        state = hook.state_of(model, recipe, **{**options, "start_step": 0})
        state.needs_no_hook()
        return state
    state = hook.attach(model, recipe, **options)
    if accelerator.scaler is not None:
        state.use_scaler(accelerator.scaler)
    taken[name] = state

    # What the accelerator keeps of these does not keep the state, which lives with its model.
    def alive() -> CompressionState | None:
        kept = taken.get(name)
        return kept if on_all(kept is not None) else None

    def save(models: object, weights: object, folder: str) -> None:
        kept = alive()
        if kept is not None:
            checkpoints.save(Path(folder, name), compression=kept)

    def load(models: object, folder: str) -> None:
        kept = alive()
        if kept is not None and on_any(Path(folder, name).is_dir()):
            checkpoints.load(Path(folder, name), compression=kept)

    for handle in (
        accelerator.register_save_state_pre_hook(save),
        accelerator.register_load_state_pre_hook(load),
    ):
        finalize(state, handle.remove)
    return state
