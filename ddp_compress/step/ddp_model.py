"""Find a parameter's DDP model, and see its forward passes."""

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def models_of(parameter: Tensor) -> list[DistributedDataParallel]:
    """The DDP models that average the gradients of a parameter."""
    return [
        each
        for each in ddp_models()
        if any(parameter is theirs for theirs in each._module_parameters)
    ]


def ddp_models() -> list[DistributedDataParallel]:
    """All there are. This looks through all objects: a tenth of a second."""
    found = (each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel))
    return [each for each in found if "module" in each._modules]  # others failed to be made


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
    """A hook of a DDP model that calls a method before every forward pass with gradients.

    It keeps the method's object no longer alive than others do. A copy of the model, also an
    unpickled one, has a copy of this that calls nothing; it warns if that model is trained, for
    DDP's copies lose their communication hook.

    Args:
        model: the hook is registered on it.
        act: the method.
        warns: whether the copy of a model warns.

    Attributes:
        joined: whether the pass under way is one in which this rank has no input (`DDP.join`).
    """

    def __init__(
        self, model: DistributedDataParallel, act: Callable[[], None], warns: bool = True
    ) -> None:
        self.joined = False
        self._model = weakref.ref(model)
        self._act: weakref.WeakMethod[Callable[[], None]] | None = weakref.WeakMethod(act)
        self._forward = False  # seen since the last backward pass
        self._unseen = 0  # backward passes that came without
        self._warns = warns
        self._handle = model.register_forward_pre_hook(self)

    @property
    def model(self) -> DistributedDataParallel | None:
        """The model, if it still lives."""
        return self._model()

    def remove(self) -> None:
        """Call the method no more."""
        self._handle.remove()

    def precedes_pass(self, state: object) -> bool:
        """Whether a backward pass that begins is the model's: it went forward, or has joined.

        Where neither is seen, as where forward is called past the hooks, to look once is enough.
        """
        model, seen = self.model, self._forward
        if model is None:
            return False
        self._forward = False
        self.joined = model._join_config.enable and not seen
        listed = any(state is theirs for _, theirs in model._comm_hooks)
        if listed and (seen or self.joined):
            return True
        self._unseen += 1
        return self._unseen > 1

    def __call__(self, model: DistributedDataParallel, _: object) -> None:
        """Called by the model."""
        if not torch.is_grad_enabled():
            return
        if self._act is None:
            self._warn(model)
            return
        act = self._act()
        if act is not None:
            self._forward = True
            _call(act)

    def _warn(self, model: DistributedDataParallel) -> None:
        trains = model.training and any(p.requires_grad for p in model.module.parameters())
        if trains and self._warns and not has_hook(model):
            self._warns = False
            warnings.warn(
                "this copy of a DDP model trains by plain all-reduce: DDP's copies lose their "
                "communication hook. To compress its gradients, attach to it (or make LocalUpdates "
                "of it), and load_state_dict the original state's state_dict() to go on with its "
                "memory",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"_act": None, "_warns": self._warns}


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _call(act: Callable[[], None]) -> None:
    act()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def has_hook(model: DistributedDataParallel) -> bool:
    """Whether a communication hook is registered on a DDP model, and not only listed."""
    return model._get_ddp_logging_data().get("comm_hook") is not None
