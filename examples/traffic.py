"""How gradients travel, and what that costs: dense, PyTorch's own hooks, or a compressed recipe."""

import inspect
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

import ddp_compress as dc
from models import count_parameters
from post_local_sgd import PostLocalSGD

BUILT_IN = ("none", "fp16", "powersgd", "post_local_sgd")
POWERSGD_RANK = 4


@dataclass(frozen=True)
class Traffic:
    """What one rank spent on gradients in so many steps."""

    steps: int
    payload_bytes: float  # what the rank encoded
    sent_bytes: float  # what it gave to collectives
    received_bytes: float  # what it took from them
    within_bytes: float = 0  # what it gave to the other ranks of its node, dense
    nonzeros: int | None = None  # entries the payload holds, where that is counted
    measured: bool = True  # False: computed as for a ring all-reduce

    def __sub__(self, earlier: "Traffic") -> "Traffic":
        return Traffic(
            self.steps - earlier.steps,
            self.payload_bytes - earlier.payload_bytes,
            self.sent_bytes - earlier.sent_bytes,
            self.received_bytes - earlier.received_bytes,
            self.within_bytes - earlier.within_bytes,
            None if self.nonzeros is None else self.nonzeros - (earlier.nonzeros or 0),
            self.measured,
        )


Meter = Callable[[int], Traffic]  # of the first so many steps


def ring_all_reduce(steps: int, payload_bytes: float) -> Traffic:
    """A ring all-reduce over W ranks moves 2(W-1)/W of its payload out of and into every rank."""
    world_size = dist.get_world_size()
    moved = 2 * (world_size - 1) / world_size * payload_bytes
    return Traffic(steps, payload_bytes, moved, moved, measured=False)


def holds_momentum(args: Namespace) -> bool:
    """Whether the recipe applies momentum itself, so that the optimizer must not.

    It does so to gradients; local steps have had theirs already when they are compressed.
    """
    return not args.period and "momentum" in _words(args.recipe)


def make_recipe(args: Namespace) -> Any:
    """``dc.recipes.<name>`` with those of our options that it takes; None for built-in hooks."""
    words = _words(args.recipe)
    given = [name for name in ("scope", "codec") if getattr(args, name)]
    for name in (*given, *dict(args.set)):
        if name not in words:
            raise ValueError(f"recipe {args.recipe} takes no {name}")
    if args.period and args.recipe in {*BUILT_IN, "dgc"} - {"post_local_sgd"}:
        raise ValueError(f"recipe {args.recipe} is of gradients: it takes no --period")
    rank = powersgd_rank(args)
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number of at least 1, got {rank!r}")
    if args.recipe in BUILT_IN:
        return None
    options = {
        "density": density_schedule(args),
        "momentum": args.momentum if holds_momentum(args) else 0.0,
        "scope": args.scope,
        "codec": args.codec,
        **dict(args.set),
    }
    chosen = {name: value for name, value in options.items() if name in words and value is not None}
    return getattr(dc.recipes, args.recipe)(**chosen)


def density_schedule(args: Namespace) -> Any:
    """The density itself, or a schedule that falls to it; with --period in rounds."""
    warmup_steps = args.warmup_steps // (args.period or 1)
    if warmup_steps == 0:
        return args.density
    return dc.schedules.exponential_warmup(args.density, warmup_steps, args.warmup_density)


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    args: Namespace,
    recipe: Any,
    group: dist.ProcessGroup | None,
) -> tuple[Optimizer, dc.CompressionState | None, Meter]:
    """Choose how the gradients of ``model`` travel, or with ``--period`` its weights.

    Args:
        model: a DDP model, or with ``--shard`` a sharded one.
        optimizer: of its parameters.
        args: the command line.
        recipe: None for built-in hooks.
        group: with ``--shard`` the ranks that have the same shard.

    Returns:
        The optimizer to train with; what compression keeps from step to step, if there is any; and
        a meter of what travelling costs.
    """
    if args.recipe in BUILT_IN:
        return optimizer, None, attach_built_in(model, optimizer, args)
    if args.period:  # two lines that a training script needs
        state = dc.CompressionState(model, recipe, group, within=node_of(args))
        outer = nesterov if args.diloco else None
        local = dc.LocalUpdates(optimizer, model, state, args.period, outer)
        return local, state, meter_of(state)
    if args.shard:
        state = dc.attach(model, recipe, process_group=group)
        return optimizer, state, meter_of(state)
    # The one line that a training script needs.
    state = dc.attach(model, recipe, within=node_of(args))
    return optimizer, state, meter_of(state)


def nesterov(anchor: list[Tensor]) -> Optimizer:
    """The outer optimizer of DiLoCo."""
    return SGD(anchor, lr=0.7, momentum=0.9, nesterov=True)


def attach_built_in(model: nn.Module, optimizer: Optimizer, args: Namespace) -> Meter:
    """Register one of PyTorch's own hooks, or none."""
    assert isinstance(model, DistributedDataParallel)
    elements = count_parameters(model)
    if args.recipe == "fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return lambda steps: ring_all_reduce(steps, 2 * elements * steps)
    if args.recipe == "powersgd":
        return attach_powersgd(model, elements, powersgd_rank(args), max(2, args.warmup_steps))
    if args.recipe == "post_local_sgd":
        local = PostLocalSGD(optimizer, model, args.period, args.warmup_steps, args.steps)
        return lambda steps: ring_all_reduce(steps, 4 * elements * local.all_reduces)
    return lambda steps: ring_all_reduce(steps, 4 * elements * steps)


def node_of(args: Namespace) -> Any:
    """Which ranks share this one's node: what ``within`` takes."""
    if not isinstance(args.within, int):
        return args.within
    shape = (dist.get_world_size() // args.within, args.within)
    return init_device_mesh("cpu", shape, mesh_dim_names=("node", "rank"))["rank"]


def meter_of(state: dc.CompressionState) -> Meter:
    """What a state counted."""

    def meter(steps: int) -> Traffic:
        stats = state.stats
        moved = stats.sent_bytes, stats.received_bytes, stats.within.sent_bytes
        return Traffic(steps, stats.payload_bits / 8, *moved, stats.nonzeros)

    return meter


def powersgd_rank(args: Namespace) -> Any:
    """Of the matrices that stand for a gradient."""
    return dict(args.set).get("rank", POWERSGD_RANK)


def attach_powersgd(
    model: DistributedDataParallel, elements: int, rank: int, dense_steps: int
) -> Meter:
    """PyTorch's PowerSGD, after some dense steps; it counts the elements that it all-reduces."""
    state = powerSGD_hook.PowerSGDState(
        process_group=None,
        matrix_approximation_rank=rank,
        start_powerSGD_iter=dense_steps,
    )
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    def meter(steps: int) -> Traffic:
        dense = min(steps, dense_steps) * elements
        return ring_all_reduce(steps, 4 * (dense + state.total_numel_after_compression))

    return meter


def bucket_cap_mb(recipe: str, elements: int) -> int | None:
    """One bucket for the whole model for PowerSGD: with several it deadlocks on Gloo."""
    return 4 * elements // 2**20 + 1 if recipe == "powersgd" else None


def _words(recipe: str) -> set[str]:
    if recipe in BUILT_IN:
        return {"rank"} if recipe == "powersgd" else set()
    return set(inspect.signature(getattr(dc.recipes, recipe)).parameters)
