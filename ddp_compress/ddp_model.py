"""The DDP model whose hook a state is: found, and seen at every forward pass."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def models_of(parameter: Tensor) -> list[DistributedDataParallel]:
    """The DDP models that hold a parameter. This looks through all objects: a tenth of a second."""
    return [
        each
        for each in gc.get_objects()
        if issubclass(type(each), DistributedDataParallel)
        and any(parameter is theirs for theirs in each._module_parameters)
    ]


def find_model(
    parameter: Tensor, state: object, but: DistributedDataParallel | None = None
) -> DistributedDataParallel:
    """The DDP model of a parameter: a hook is told of its bucket alone.

    Args:
        parameter: of the bucket.
        state: the hook's. Where several models hold the parameter, it is the one that was given
            this state.
        but: where there is another, not this one.

    Raises:
        ValueError: there is none, or no telling which.
    """
    models = models_of(parameter)
    listing = [m for m in models if any(state is theirs for _, theirs in m._comm_hooks)]
    for likely in (listing, models):
        found = [model for model in likely if model is not but] or likely
        if len(found) == 1:
            return found[0]
    raise ValueError(
        f"{len(models)} DDP models hold the parameters of this bucket, expected one: make the "
        "state by CompressionState(ddp_model, recipe), and delete DDP models no longer in use"
    )


class BeforeForward:
    """A hook of a DDP model that calls a function before every forward pass with gradients.

    A copy of the model, also an unpickled one, has a copy of this that calls nothing. It warns if
    that model is trained, for DDP's copies lose their communication hook.

    Args:
        model: the hook is registered on it.
        act: the function.
    """

    def __init__(self, model: DistributedDataParallel, act: Callable[[], None]) -> None:
        self._model = weakref.ref(model)
        self._act: Callable[[], None] | None = torch.compiler.disable(act)
        self._seen = False  # a forward pass, since the last backward pass
        self._found = 0  # backward passes that came without
        self._warned = False
        model.register_forward_pre_hook(self)

    @property
    def model(self) -> DistributedDataParallel | None:
        """The model, if it still lives."""
        return self._model()

    def precedes_pass(self, state: object) -> bool:
        """Whether a backward pass that begins is the model's: it went forward, or has joined.

        Where neither is seen, as where forward is called past the hooks, to look once is enough.
        """
        model, seen = self.model, self._seen
        if model is None:
            return False
        self._seen = False
        listed = any(state is theirs for _, theirs in model._comm_hooks)
        if listed and (seen or model._join_config.enable):
            return True
        self._found += 1
        return self._found > 1

    def __call__(self, model: DistributedDataParallel, _: object) -> None:
        """Called by the model."""
        if not torch.is_grad_enabled():
            return
        if self._act is not None:
            self._seen = True
            self._act()
        elif model.training and not self._warned and not has_hook(model):
            self._warned = True
            warnings.warn(
                "this copy of a DDP model trains by plain all-reduce: DDP's copies lose their "
                "communication hook. To compress its gradients, call attach(model, recipe), and "
                "load_state_dict with the original state's state_dict() to go on with its memory",
                stacklevel=2,
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> BeforeForward:
        twin = object.__new__(BeforeForward)
        twin.__setstate__(self.__getstate__())
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {"_act": None, "_warned": False}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def has_hook(model: DistributedDataParallel) -> bool:
    """Whether a communication hook is registered on a DDP model, and not only listed."""
    return model._get_ddp_logging_data().get("comm_hook") is not None
