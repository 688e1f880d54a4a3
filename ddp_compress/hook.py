"""DDP's communication hooks, and `attach`, which registers compression on a model."""

# DDP inspects this module's annotations: they must be objects, not strings.

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

import torch
import torch.distributed as dist  # noqa: TID251 - types alone
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import recipes
from ddp_compress.recipe import Recipe
from ddp_compress.step.find_model import find_model
from ddp_compress.step.state import FLUSH_BYTES, CompressionState
from ddp_compress.transport.nodes import Within


class NoKey:
    """A function that cannot be a key of a table, and says so.

    Accelerate looks hooks up in a table of those it knows, and where it finds none trains dense, in
    silence.
    """

    def __init__(
        self, function: Callable[[Any, dist.GradBucket], torch.futures.Future[torch.Tensor]]
    ) -> None:
        self._function = function
        update_wrapper(self, function)

    def __call__(self, state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Call it."""
        return self._function(state, bucket)

    def __hash__(self) -> int:
        raise TypeError(
            "compress_hook is none of the hooks that Accelerate's DistributedDataParallelKwargs("
            "comm_hook=...) knows, or others by name: leave that out, and call "
            "ddp_compress.integrations.accelerate.attach(accelerator, model, recipe) on the model "
            "that accelerator.prepare has returned, or ddp_compress.attach(ddp_model, recipe)"
        )

    def __reduce__(self) -> str:
        return self._function.__qualname__


@NoKey
def compress_hook(
    state: CompressionState, bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """A communication hook for DDP that sends a bucket through a state's recipe.

    Args:
        state: what stays between steps.
        bucket: DDP's bucket.

    Returns:
        A future of the averaged gradients, [N].

    Raises:
        PeerError, ValueError: see `CompressionState.push_bucket`.
        TypeError: ``state`` is no `CompressionState`.

    Example:
        ``ddp_model.register_comm_hook(state, compress_hook)``
    """
    if not isinstance(state, CompressionState):
        raise TypeError(
            f"compress_hook needs a CompressionState, got {type(state).__name__}: call "
            "ddp_model.register_comm_hook(CompressionState(ddp_model, recipe), compress_hook)"
        )
    return state.push_bucket(bucket)


@dataclass
class Passes:
    """How many backward passes have come to their last bucket."""

    count: int = 0


def local_hook(passes: Passes, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A communication hook for DDP that leaves gradients on their rank and counts the passes."""
    passes.count += bucket.is_last()
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future(
        devices=[bucket.buffer().device] if bucket.buffer().is_cuda else []
    )
    future.set_result(bucket.buffer())
    return future


def register(
    model: DistributedDataParallel,
    state: object,
    hook: Callable[[Any, dist.GradBucket], torch.futures.Future[torch.Tensor]],
) -> None:
    """Register a communication hook on a DDP model, which takes one.

    Raises:
        ValueError: it has one. What a copied model lists is no hook of its own.
    """
    listed = list(model._comm_hooks)
    try:
        model.register_comm_hook(state, hook)
    except RuntimeError as error:
        model._comm_hooks = listed
        name = listed[-1][0].__qualname__ if listed else "of PyTorch's own"
        raise ValueError(
            f"the DDP model has the communication hook {name} already, and takes one: attach "
            "registers compress_hook, LocalUpdates registers local_hook. Give LocalUpdates a state "
            "made by CompressionState(ddp_model, recipe), not by attach; to begin anew, delete the "
            "DDP model and wrap its module again"
        ) from error


def attach(
    model: nn.Module,
    recipe: Recipe | str,
    *,
    process_group: dist.ProcessGroup | None = None,
    start_step: int | None = None,
    min_numel: int = 0,
    flush_bytes: int = FLUSH_BYTES,
    within: Within | None = None,
    **options: Any,
) -> CompressionState:
    """Register compression on a DDP model: the one line that an existing script adds.

    Or on one that `torch.distributed.fsdp.fully_shard` has cut up on a mesh of one dimension:
    gradients of its shards go between replicas then, when a backward pass is over.

    Args:
        model: the DDP model, or the sharded one; or what a framework hands out of it, such as
            `torch.compile` of it, Fabric's wrapper, or the bare model inside.
        recipe: a recipe, or its name in `ddp_compress.recipes`.
        process_group: a group of the model's ranks, such as one of another backend; None for the
            model's own. For a sharded model the ranks that hold the same shard, such as
            ``mesh["replicate"].get_group()``.
        start_step: see `CompressionState`.
        min_numel: see `CompressionState`.
        flush_bytes: see `CompressionState`.
        within: see `CompressionState`; "node" where every host has several ranks.
        options: for a recipe given by name, its arguments.

    Returns:
        The state: keep it for statistics and checkpoints.

    Raises:
        TypeError: there is no DDP model, or options stand beside a finished recipe.
        ValueError: the recipe is unknown, the model has parameters that cannot be compressed or
            options that go past a hook, it has a communication hook, or ``process_group`` is of
            other ranks; or the sharded model is one of those that cannot be
            (see docs/sharded_models.md).

    Example:
        ``state = attach(ddp_model, "sbc", density=0.001)``
    """
    model, recipe = find_model(model), _made(recipe, options)
    state = CompressionState(
        model, recipe, process_group, start_step, min_numel, flush_bytes, within
    )
    if isinstance(model, DistributedDataParallel):
        register(model, state, compress_hook)
    else:
        state.follow(model)
    return state


def state_of(model: nn.Module, recipe: Recipe | str, **options: Any) -> CompressionState:
    """The state of a model, which is no hook's yet; for the arguments see `attach`."""
    words = inspect.signature(CompressionState).parameters
    own = {word: options.pop(word) for word in words if word in options}
    return CompressionState(model, _made(recipe, options), **own)


def _made(recipe: Recipe | str, options: Mapping[str, Any]) -> Recipe:
    if isinstance(recipe, str):
        return recipes.by_name(recipe, **options)
    if options:
        raise TypeError(f"options {sorted(options)} belong to a recipe given by name")
    return recipe
