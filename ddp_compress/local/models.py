"""What `LocalUpdates` must know of the model that is trained: in DDP, or sharded."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress.hook import Passes, local_hook, register
from ddp_compress.step import guards
from ddp_compress.step.after_backward import AfterBackward
from ddp_compress.step.ddp_model import BeforeForward
from ddp_compress.step.sharded_model import reshard
from ddp_compress.step.state import CompressionState


class Model(Protocol):
    """What `LocalUpdates` must know of the model that is trained.

    Attributes:
        module: the bare model.
        ignored: names of parameters and buffers that ranks do not share.
        named: its parameters, by name.
    """

    module: nn.Module
    ignored: Collection[str]
    named: dict[str, Tensor]

    @property
    def trains(self) -> bool:
        """Whether a forward pass is one of training; raises where rounds would be missed."""

    def check_state(self, state: CompressionState) -> None:
        """Raise unless a state exchanges with the ranks that hold the same as this one."""

    def follow(self, passes: Passes, before_forward: Callable[[], None]) -> None:
        """Let no gradient leave its replica; count backward passes, call before forward ones."""


def model_of(model: nn.Module) -> Model:
    """What `LocalUpdates` must know of a model, which is in DDP or sharded.

    Raises:
        ValueError: it has options that go past a hook.
    """
    if not isinstance(model, DistributedDataParallel):
        return ShardedModel(model)
    guards.refuse_unsupported_ddp(model)
    return DDPModel(model)


class DDPModel:
    """See `Model`."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = model
        self.module = model.module
        self.ignored: Collection[str] = model.parameters_to_ignore
        self.named: dict[str, Tensor] = dict(model.module.named_parameters())

    @property
    def trains(self) -> bool:
        """See `Model`."""
        if self._model.training and self._model._join_config.enable:
            raise RuntimeError(
                "LocalUpdates does not work under DDP.join: a rank that ran out of inputs takes no "
                "more steps, so it would miss the rounds. Give every rank as many batches"
            )
        return self._model.training

    def check_state(self, state: CompressionState) -> None:
        """See `Model`."""
        guards.refuse_other_ranks(state.process_group, self._model)

    def follow(self, passes: Passes, before_forward: Callable[[], None]) -> None:
        """See `Model`."""
        register(self._model, passes, local_hook)
        self._model.broadcast_buffers = False
        BeforeForward(self._model, before_forward, warns=False)


class ShardedModel:
    """See `Model`. FSDP itself lets no gradient leave its replica."""

    def __init__(self, model: nn.Module) -> None:
        reshard(model)
        self.module = model
        self.ignored: Collection[str] = ()
        self.named: dict[str, Tensor] = dict(model.named_parameters())

    @property
    def trains(self) -> bool:
        """See `Model`."""
        return self.module.training

    def check_state(self, state: CompressionState) -> None:
        """See `Model`. That it knows these parameters says so."""

    def follow(self, passes: Passes, before_forward: Callable[[], None]) -> None:
        """See `Model`."""

        def count(came: object, failure: Exception | None) -> None:
            if failure is not None:
                raise failure
            passes.count += 1

        trained = {name: p for name, p in self.named.items() if p.requires_grad}
        AfterBackward(self.module, trained, count)
        act = weakref.WeakMethod(before_forward)

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def call(*_: object) -> None:
            now = act()
            if now is not None and torch.is_grad_enabled():
                now()

        # Before FSDP gathers weights: a round that is due changes them.
        self.module.register_forward_pre_hook(call, prepend=True)
