"""Refuse, by name, mistakes that would train badly in silence."""

import inspect
import warnings
from collections.abc import Collection, Iterable
from typing import Any

import torch.distributed as dist  # noqa: TID251 - types alone
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ddp_compress import ops
from ddp_compress.step.optimizers import (
    MEETS_RANKS,
    collective_in_step,
    layers,
    momentum_of,
    parameters_of,
)
from ddp_compress.transport.groups import members


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


def refuse_optimizer_in_backward(model: DistributedDataParallel) -> None:
    """Raise where optimizers step during backward.

    Raises:
        ValueError: see above. DDP then registers a hook of its own, and it takes one.
    """
    named = model.module.named_parameters()
    names = [name for name, p in named if hasattr(p, "_in_backward_optimizers")]
    if names:
        raise ValueError(
            f"_apply_optimizer_in_backward makes optimizers step {', '.join(names[:3])} during "
            "backward, by a communication hook of DDP's own: leave it out and call "
            "optimizer.step() after backward"
        )


def refuse_other_ranks(group: dist.ProcessGroup | None, model: DistributedDataParallel) -> None:
    """Raise for a process group that is not of the DDP model's ranks.

    Raises:
        ValueError: see above. Replicas would drift apart: DDP keeps those of its own group equal.
    """
    ours, theirs = members(group), members(model.process_group)
    if ours != theirs:
        raise ValueError(
            f"process_group is of ranks {ours}, but the DDP model is of ranks {theirs}: leave it "
            "out, as in CompressionState(ddp_model, recipe), which takes the model's own, or make "
            "the DDP model with it"
        )


def refuse_unsupported_parameters(model: nn.Module, ignored: Collection[str] = ()) -> None:
    """Raise for parameters whose gradients cannot be compressed.

    Args:
        model: the bare model.
        ignored: names of parameters that do not travel.

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
        if name in ignored:
            continue
        if parameter.requires_grad and parameter.is_complex():
            raise ValueError(
                f"{name} is complex ({parameter.dtype}), which cannot be compressed: keep it as a "
                "real parameter with a last dimension of 2 and use torch.view_as_complex"
            )
        if parameter.is_cuda and not ops.CUDA:
            raise ValueError(
                f"{name} is on {parameter.device}, but ddp_compress runs without its CUDA kernels "
                f"({ops.CUDA_LACKS}): install a wheel that has them, or where nvcc is, with "
                "DDP_COMPRESS_CUDA=1 to see what is missing, or keep the model on the CPU"
            )
        if parameter.device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(
                f"{name} is on {parameter.device}: kernels exist for the CPU and for CUDA alone"
            )
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            weight = f"{name}.weight" if name else "weight"
            if weight not in ignored:
                raise ValueError(
                    f"{weight} has sparse gradients, which cannot be compressed: use sparse=False"
                )


def refuse_steps_with_others(optimizer: Optimizer) -> None:
    """Raise for optimizers that cannot take a local step when told to; warn of those that may not.

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
        has = [name for name in MEETS_RANKS if hasattr(each, name)]
        if has:
            raise ValueError(
                f"{type(each).__name__} meets the other ranks by itself (it has {has[0]}), so that "
                "its steps are not local, and a rank that skips one is waited for: give "
                "LocalUpdates the optimizer that it wraps"
            )
        called = collective_in_step(each)
        if called:
            warnings.warn(
                f"{type(each).__name__}.step() may call {called}: if it does, its steps are not "
                "local, and the others wait for a rank that skips one, as a GradScaler makes it. "
                "Take it only in a setting in which its steps need no other rank",
                stacklevel=4,
            )


def refuse_unknown_parameters(optimizer: Optimizer, known: set[int], module: nn.Module) -> None:
    """Raise for an optimizer that trains parameters over which `LocalUpdates` holds no rounds.

    Args:
        optimizer: of the local steps.
        known: ids of the parameters that it may step.
        module: the bare model, for their names.

    Raises:
        ValueError: see above.
    """
    parameters = parameters_of(optimizer)
    if known.issuperset(map(id, parameters)):  # as at nearly every step
        return
    for parameter in parameters:
        if parameter.requires_grad and id(parameter) not in known:
            names = (name for name, p in module.named_parameters() if p is parameter)
            name = next(names, f"a parameter of shape {tuple(parameter.shape)}")
            raise ValueError(
                f"the optimizer steps {name}, which is not among the parameters that ddp_model "
                "trained when LocalUpdates was made: no round would meet over it, and ranks would "
                "drift apart. Unfreeze before wrapping the model; other models' parameters need an "
                "optimizer of their own"
            )


def check_optimizer(optimizer: Optimizer, recipe: str) -> None:
    """Raise if an optimizer has a momentum of its own beside a recipe's.

    Raises:
        ValueError: a parameter group has momentum or, like Adam, a first-moment average; or one of
            an optimizer that this one wraps has.
    """
    _check_momentum(layers(optimizer), recipe)


def _check_momentum(optimizers: Iterable[Any], recipe: str) -> None:
    for each in optimizers:
        momentum = max(map(momentum_of, each.param_groups), default=0.0)
        if momentum:
            raise ValueError(
                f"{recipe} keeps the momentum itself, but {type(each).__name__} has a second "
                f"one of {momentum}: use torch.optim.SGD with momentum=0 and give the "
                f"momentum to the recipe, or use recipes.topk with this optimizer"
            )


def refuse_second_momentum(optimizer: Optimizer, ids: Collection[int], recipe: str) -> None:
    """`check_optimizer`, where an optimizer that takes a step has any of some parameters.

    Args:
        optimizer: whatever it wraps may be of other models.
        ids: of the parameters whose momentum the recipe keeps.
        recipe: its name.

    Raises:
        ValueError: see `check_optimizer`.
    """
    if _holds(optimizer, ids):
        wrapped = layers(optimizer)[1:]
        ours = [each for each in wrapped if _holds(each, ids)]
        _check_momentum([optimizer, *(ours or wrapped)], recipe)  # none has ours: they have copies


def _holds(optimizer: Any, ids: Collection[int]) -> bool:
    return any(id(p) in ids for p in parameters_of(optimizer))
