"""Compression in a Lightning Trainer: one more callback."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ddp_compress.checkpoints.all_ranks import AllRanks
from ddp_compress.checkpoints.stateful import Stateful, on_host, plain, take_back
from ddp_compress.hook import attach, state_of
from ddp_compress.local.local_updates import LocalUpdates, Period
from ddp_compress.local.round import Outer
from ddp_compress.optional import needed
from ddp_compress.recipe import Recipe
from ddp_compress.step.find_model import find_model
from ddp_compress.step.state import CompressionState

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = needed("lightning.pytorch", "pytorch_lightning", install="lightning").Callback


class CompressionCallback(Callback):
    """Lets the gradients of a Lightning Trainer travel compressed, on CPUs and GPUs.

    It attaches a recipe to the DDP model when fitting begins, tells of the precision plugin's
    GradScaler, keeps every rank's state in Lightning's own checkpoints (``ckpt_path=`` resumes it,
    on another number of ranks too), and logs `CompressionState.metrics` as often as the Trainer
    logs, where it has a logger. On one device there is nothing to compress: it says so, and does
    nothing.

    A checkpoint holds the states of all ranks: 4 bytes a parameter and rank, 8 with a momentum.

    Args:
        recipe: a recipe, or its name in `ddp_compress.recipes`.
        period: local steps between rounds, for `LocalUpdates`; None to exchange every gradient.
        outer: see `LocalUpdates`.
        buffers: see `LocalUpdates`.
        options: more of `attach`: the recipe's arguments where it is given by name, ``within``,
            ``min_numel`` and so on.

    Attributes:
        state: the state of the fit under way, or the last; None before, and on one device.

    Raises:
        TypeError: at the begin of fitting, where the strategy makes no DDP model.
        ValueError: see `attach` and `LocalUpdates`; or there is not one optimizer for local steps.

    Example::

        from lightning.pytorch import Trainer
        from ddp_compress.integrations.lightning import CompressionCallback

        compression = CompressionCallback("topk", density=0.01)
        trainer = Trainer(devices=4, strategy="ddp", callbacks=[compression])
    """

    def __init__(
        self,
        recipe: Recipe | str,
        *,
        period: Period | None = None,
        outer: Outer | None = None,
        buffers: Literal["average", "keep"] = "average",
        **options: Any,
    ) -> None:
        self.state: CompressionState | None = None
        self._recipe = recipe
        self._period = period
        self._outer = outer
        self._buffers = buffers
        self._options = options
        self._parts: _Parts | None = None
        self._local: LocalUpdates | None = None
        self._saved: Mapping[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what was restored for a test or a validation before."""
        self._saved = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach: the strategy has just made its DDP model."""
        model: Any = trainer.strategy.model
        self.state = self._local = self._parts = None
        if trainer.world_size == 1:
            warnings.warn(
                "CompressionCallback does nothing: the Trainer has one device, between which no "
                "gradients travel. Give it devices=4, strategy='ddp', or several nodes",
                stacklevel=2,
            )
            return
        if self._period is None:
            self.state = attach(model, self._recipe, **self._options)
            parts: dict[str, Stateful] = {"compression": self.state}
        else:
            ddp_model = find_model(model)
            self.state = state_of(ddp_model, self._recipe, **self._options)
            self._local = self._step_locally(trainer, ddp_model, self.state)
            # Between two rounds every rank has weights of its own.
            parts = {"model": ddp_model, "optimizer": self._local, "compression": self.state}
        self._parts = _Parts(parts)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            self.state.use_scaler(scaler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back a checkpoint, once Lightning has loaded weights and optimizers."""
        if self._parts is not None and self._saved is not None:
            AllRanks(self._parts).load_state_dict(self._saved)
        self._saved = None
        if self.state is not None and trainer.loggers:
            self.state.metrics()  # from here on

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log when the Trainer does, at the step by which it counts then."""
        if self.state is None or not trainer.loggers:
            return
        if pl_module.automatic_optimization and trainer.fit_loop._should_accumulate():
            return
        step, every = trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.log_every_n_steps
        if not every or (step + 1) % every:
            return
        metrics = self.state.metrics()
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End local steps with a round: every rank leaves with the same weights."""
        if self._local is not None:
            self._local.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """On rank 0 every rank's state; Lightning calls it on all ranks."""
        return {} if self._parts is None else AllRanks(self._parts).state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` gave until there is a DDP model.

        Raises:
            ValueError: it was saved with local steps and is loaded without, or the other way round.
        """
        saved: Mapping[str, Any] = next(iter(state_dict.values()), {})
        if ("optimizer" in saved) != (self._period is not None):
            then, now = ("with", "without") if "optimizer" in saved else ("without", "with")
            raise ValueError(
                f"checkpoint was saved {then} local steps, but CompressionCallback is {now} "
                "period=: resume with the period that it was saved with"
            )
        self._saved = state_dict

    def _step_locally(
        self, trainer: Trainer, model: nn.Module, state: CompressionState
    ) -> LocalUpdates:
        optimizers = trainer.strategy.optimizers
        if len(optimizers) != 1:
            raise ValueError(
                f"local steps are one optimizer's, but configure_optimizers() gave "
                f"{len(optimizers)}: return one, or leave out period="
            )
        assert self._period is not None
        local = LocalUpdates(optimizers[0], model, state, self._period, self._outer, self._buffers)
        trainer.strategy.optimizers = [local]
        return local


class _Parts:
    """Several parts of a training as one."""

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self._parts = parts

    def state_dict(self) -> dict[str, Any]:
        return {name: plain(name, on_host(part)) for name, part in self._parts.items()}

    def load_state_dicts(self, every: list[Mapping[str, Any]]) -> None:
        for name, part in self._parts.items():
            take_back(part, [saved[name] for saved in every])

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.load_state_dicts([saved])
