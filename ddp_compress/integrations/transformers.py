"""Compression in the Trainer of Hugging Face's transformers: one more callback."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ddp_compress import checkpoints
from ddp_compress.hook import attach, state_of
from ddp_compress.optional import needed
from ddp_compress.recipe import Recipe
from ddp_compress.step.find_model import find_model
from ddp_compress.step.restored import weight_hashes
from ddp_compress.step.state import CompressionState
from ddp_compress.transport.together import on_all, on_any

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
else:
    TrainerCallback = needed("transformers", install="transformers[torch]").TrainerCallback

FOLDER = "compression"  # in the Trainer's checkpoint-500


class CompressionCallback(TrainerCallback):
    """Lets the gradients of a Trainer travel compressed, on CPUs and GPUs.

    It attaches a recipe to the Trainer's DDP model when training begins, tells of its GradScaler,
    keeps every rank's state in the folder of each checkpoint, takes it back where training resumes
    (on another number of ranks too), and adds `CompressionState.metrics` to what is logged. On one
    device there is nothing to compress: it says so, and does nothing.

    Reporters that stand behind it see the metrics, those before it do not. The Trainer puts those
    of ``report_to`` first: give ``report_to="none"`` and the reporter as a callback.

    Args:
        recipe: a recipe, or its name in `ddp_compress.recipes`.
        options: more of `attach`: the recipe's arguments where it is given by name, ``within``,
            ``min_numel`` and so on.

    Attributes:
        state: the state of the training under way, or the last; None before, and on one device.

    Raises:
        TypeError, ValueError: when training begins, see `attach`.

    Example::

        from transformers import Trainer
        from transformers.integrations import TensorBoardCallback
        from ddp_compress.integrations.transformers import CompressionCallback

        compression = CompressionCallback("topk", density=0.01)
        trainer = Trainer(model, args, callbacks=[compression, TensorBoardCallback()])
        trainer.train()
    """

    def __init__(self, recipe: Recipe | str, **options: Any) -> None:
        self.state: CompressionState | None = None
        self._recipe = recipe
        self._options = options

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Attach: the Trainer has just made its DDP model, and loaded weights and optimizer."""
        if args.world_size == 1:
            self.state = None
            warnings.warn(
                "CompressionCallback does nothing: the Trainer has one process, between which no "
                "gradients travel. Start it by torchrun --nproc_per_node=4, or accelerate launch",
                stacklevel=2,
            )
            return
        hooks = getattr(find_model(model), "_comm_hooks", ())
        goes_on = any(self.state is theirs for _, theirs in hooks)  # train() was called before
        if goes_on and not state.global_step:
            return
        folder = _folder_of(model, args, state.global_step) if state.global_step else None
        options = self._options
        if state.global_step and folder is None and "start_step" not in options:
            _warn_of_lost_state(state.global_step, str(args.output_dir))
            options = {**options, "start_step": 0}  # once is enough
        if not goes_on:
            self.state = attach(model, self._recipe, **options)
        assert self.state is not None
        if goes_on and folder is None:  # what it keeps is of other weights
            self.state.load_state_dict(state_of(model, self._recipe, **options).state_dict())
        if folder is not None:
            checkpoints.load(folder, compression=self.state)
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None:
            self.state.use_scaler(scaler)
        self.state.metrics()  # from here on

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Save every rank's state beside the Trainer's files; of a search it resumes none."""
        if self.state is None or args.save_only_model or state.is_hyper_param_search:
            return
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}", FOLDER)
        checkpoints.save(folder, compression=self.state, weights=_Weights(model))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Add metrics to what is logged of a step."""
        if self.state is not None and logs is not None and "loss" in logs:
            metrics = self.state.metrics()
            logs.update(metrics)
            state.log_history[-1].update(metrics)


class _Weights:
    """Whether a model's weights are those beside which something was saved."""

    def __init__(self, model: nn.Module) -> None:
        self.are_the_same = False
        self._digest = weight_hashes(model.parameters())

    def state_dict(self) -> dict[str, Any]:
        return {"digest": self._digest}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.are_the_same = saved["digest"] == self._digest


def _folder_of(model: nn.Module, args: TrainingArguments, step: int) -> Path | None:
    """Where the state that belongs to a model's weights was saved; None if it is not found.

    A Trainer tells no callback where it resumes from: mostly from where it saves.
    """
    told = args.resume_from_checkpoint
    checkpoint = Path(str(args.output_dir), f"checkpoint-{step}")
    named = [Path(told)] if isinstance(told, str) and told.lower() not in ("true", "false") else []
    for folder in (each / FOLDER for each in (*named, checkpoint)):
        if on_any(folder.is_dir()):
            weights = _Weights(model)
            checkpoints.load(folder, weights=weights)
            if on_all(weights.are_the_same):
                return folder
    return None


def _warn_of_lost_state(steps: int, folder: str) -> None:
    warnings.warn(
        f"training resumes after {steps} steps, but in {folder} is nothing that was saved with "
        "these weights: what ranks still owed to the model is lost, and a density warm-up starts "
        "again. Where the checkpoint lies elsewhere, say so by "
        "TrainingArguments(resume_from_checkpoint=...); where it was saved without compression, "
        "give CompressionCallback start_step=",
        stacklevel=3,
    )
