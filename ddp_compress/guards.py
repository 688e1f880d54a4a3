"""Mistakes that would train badly in silence are refused by name."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ddp_compress import ops
from ddp_compress.optimizers import collective_in_step, layers, momentum_of


def refuse_unsupported_ddp(model: DistributedDataParallel) -> None:
    """Raise for DDP options under which gradients go past the hook, or a step comes to no end.

    Raises:
        ValueError: the model was made with ``skip_all_reduce_unused_params``, with
            ``delay_all_reduce_named_params``, with ``mixed_precision``, or for dynamo's Python
            reducer.
    """
    if getattr(model, "skip_all_reduce_unused_params", False):
        raise ValueError(
            "skip_all_reduce_unused_params=True may skip the last bucket, at which a compressed "
            "step commits: make the DDP model without it"
        )
    delayed = {id(p) for p in getattr(model, "_delay_all_reduce_params", ())}
    if delayed:
        names = [name for name, p in model.module.named_parameters() if id(p) in delayed]
        raise ValueError(
            f"delay_all_reduce_named_params keeps {', '.join(names)} from the hook: DDP averages "
            "them dense, and does not wait for the end of that. Make the DDP model without it"
        )
    if getattr(model, "mixed_precision", None) is not None:
        raise ValueError(
            "mixed_precision makes DDP register a communication hook of its own, and it takes one: "
            "make the DDP model without it and use torch.autocast"
        )
    if getattr(model, "_use_python_reducer", False):
        raise ValueError(
            'torch._dynamo.config.optimize_ddp="python_reducer" calls no hook with buckets: make '
            "the DDP model with another setting"
        )


def refuse_unsupported_parameters(model: nn.Module) -> None:
    """Raise for parameters whose gradients cannot be compressed.

    Raises:
        ValueError: a parameter is complex or on a device that has no kernels, or its module asks
            for sparse gradients.

    Example:
        >>> refuse_unsupported_parameters(nn.Embedding(3, 2, sparse=True))
        Traceback (most recent call last):
        ...
        ValueError: weight has sparse gradients, which cannot be compressed: use sparse=False
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_complex():
            raise ValueError(
                f"{name} is complex ({parameter.dtype}), which cannot be compressed: keep it as a "
                "real parameter with a last dimension of 2 and use torch.view_as_complex"
            )
        if parameter.is_cuda and not ops.CUDA:
            raise ValueError(
                f"{name} is on {parameter.device}, but ddp_compress was built without its CUDA "
                "kernels: install it again where nvcc is, with DDP_COMPRESS_CUDA=1 to see what is "
                "missing, or keep the model on the CPU"
            )
        if parameter.device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(
                f"{name} is on {parameter.device}: kernels exist for the CPU and for CUDA alone"
            )
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            weight = f"{name}.weight" if name else "weight"
            raise ValueError(
                f"{weight} has sparse gradients, which cannot be compressed: use sparse=False"
            )


def refuse_steps_with_others(optimizer: Optimizer) -> None:
    """Raise for optimizers that cannot take a local step when told to.

    Raises:
        ValueError: ``step()`` needs a closure, as LBFGS's; or it, or that of an optimizer which it
            wraps, needs other ranks, as ZeRO's.

    Example:
        >>> import torch
        >>> refuse_steps_with_others(torch.optim.LBFGS([torch.zeros(1)]))
        Traceback (most recent call last):
        ...
        ValueError: LBFGS.step() needs a closure: take an optimizer whose step() needs none
    """
    name = type(optimizer).__name__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{name}.step() needs a closure: take an optimizer whose step() needs none"
        )
    for each in layers(optimizer):
        called = "synchronize" if hasattr(each, "synchronize") else collective_in_step(each)
        if called:
            raise ValueError(
                f"{type(each).__name__} meets the other ranks by itself ({called}), so that its "
                "steps are not local, and a rank that skips one is waited for: give LocalUpdates "
                "the optimizer that it wraps"
            )


def check_optimizer(optimizer: Optimizer, recipe: str) -> None:
    """Raise if an optimizer has a momentum of its own beside a recipe's.

    Raises:
        ValueError: a parameter group has momentum or, like Adam, a first-moment average; or one of
            an optimizer that this one wraps has.
    """
    for each in layers(optimizer):
        momentum = max(map(momentum_of, each.param_groups), default=0.0)
        if momentum:
            raise ValueError(
                f"{recipe} keeps the momentum itself, but {type(each).__name__} has a second "
                f"one of {momentum}: use torch.optim.SGD with momentum=0 and give the "
                f"momentum to the recipe, or use recipes.topk with this optimizer"
            )


def refuse_second_momentum(owner: object, parameters: Iterable[Tensor], recipe: str) -> None:
    """Check the optimizers of these parameters before each of their steps, while ``owner`` lives.

    Args:
        owner: keeps the parameters alive.
        parameters: whose momentum the recipe keeps.
        recipe: its name.

    Raises:
        ValueError: later, from ``optimizer.step()``; see `check_optimizer`.
    """
    _watch_optimizers()
    _watched[owner] = (recipe, frozenset(map(id, parameters)))


# By owner: a recipe's name, and the ids of the parameters whose momentum it keeps.
_watched: weakref.WeakKeyDictionary[object, tuple[str, frozenset[int]]] = (
    weakref.WeakKeyDictionary()
)


@cache
def _watch_optimizers() -> None:
    """Once for the process: a hook must not remove itself while torch walks through them."""
    register_optimizer_step_pre_hook(_check_watched)


def _check_watched(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for recipe, ids in list(_watched.values()):
        if any(id(p) in ids for group in optimizer.param_groups for p in group["params"]):
            check_optimizer(optimizer, recipe)
