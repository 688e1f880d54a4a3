"""Models that `fully_shard` has cut up: what they are, and which of them are refused."""

import torch
import torch.distributed as dist  # noqa: TID251 - types alone
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule  # noqa: TID251 - a type alone
from torch.distributed.tensor import DTensor  # noqa: TID251 - a type alone

from ddp_compress.message.names import clean_name
from ddp_compress.recipe import Recipe
from ddp_compress.transport.groups import members

CURE = (
    "shard over one dimension of a mesh, as in fully_shard(model, mesh=mesh['shard']) for mesh = "
    "init_device_mesh('cuda', (replicas, shards), mesh_dim_names=('replicate', 'shard')), and let "
    "attach(model, recipe, process_group=mesh['replicate'].get_group()) go between replicas"
)


def is_sharded(model: object) -> bool:
    """Whether `fully_shard` was applied to a model, or to modules in it.

    Example:
        >>> is_sharded(nn.Linear(2, 1))
        False
    """
    if not isinstance(model, nn.Module):
        return False
    return any(isinstance(module, FSDPModule) for module in model.modules())


def local_of(tensor: Tensor) -> Tensor:
    """A tensor's shard on this rank; of one that is not sharded, the tensor itself."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def reshard(model: nn.Module) -> None:
    """Let a model's parameters be the sharded ones; within a pass they may be whole ones."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_group(model: nn.Module) -> dist.ProcessGroup:
    """The ranks that hold a sharded model together."""
    mesh = next(p.device_mesh for p in model.parameters() if isinstance(p, DTensor))
    return mesh.get_group()


def shards_of(model: nn.Module) -> dist.ProcessGroup | None:
    """The same; None where this rank has all of the model."""
    group = shard_group(model)
    return group if len(members(group)) > 1 else None


def refuse_unsupported_shards(
    model: nn.Module, recipe: Recipe, group: dist.ProcessGroup | None, within: object
) -> None:
    """Raise for a sharded model whose replicas would not stay equal, or would not be averaged.

    Args:
        model: `fully_shard` was applied to it.
        recipe: for its gradients.
        group: the ranks to exchange with.
        within: must be None.

    Raises:
        ValueError: FSDP averages it between replicas by itself, a parameter is trained that it
            does not manage, or parameters are sharded over several groups; ``group`` is None, or
            of ranks that hold other shards; ``within`` is given; or the recipe clips.
    """
    reshard(model)
    named = {clean_name(n): p for n, p in model.named_parameters()}
    _refuse_unmanaged(named)
    _refuse_other_meshes(named)
    if within is not None:
        raise ValueError(
            "within= is for ranks that all have whole gradients, and those of a sharded model have "
            "shards, within a node as FSDP's mesh has it: leave it out"
        )
    shards = members(shard_group(model))
    _refuse_other_group(shards, group)
    if recipe.memory.clip is not None and len(shards) > 1:
        raise ValueError(
            f"clip={recipe.memory.clip} is of a whole parameter's norm, and each rank has a shard "
            "of it: leave it out, and call clip_grad_norm_ after backward"
        )


def _refuse_unmanaged(named: dict[str, nn.Parameter]) -> None:
    names = [n for n, p in named.items() if p.requires_grad and not isinstance(p, DTensor)]
    if names:
        raise ValueError(
            f"{_some(names)} is trained, and no fully_shard manages it, so the ranks of a replica "
            "would drift apart: apply fully_shard to the root of the model, too, or freeze it"
        )


def _refuse_other_meshes(named: dict[str, nn.Parameter]) -> None:
    sharded = {n: p for n, p in named.items() if isinstance(p, DTensor)}
    for name, parameter in sharded.items():
        if parameter.device_mesh.ndim > 1:
            raise ValueError(
                f"{name} lies as {_words(parameter)}, on which FSDP would average it between "
                f"replicas by itself: {CURE}"
            )
        if not parameter.placements[0].is_shard():
            raise ValueError(
                f"{name} lies as {_words(parameter)}: replicate() averages gradients by itself. "
                "Leave it out and wrap the bare model, as in "
                "attach(DistributedDataParallel(model), recipe)"
            )
    groups = {n: members(p.device_mesh.get_group()) for n, p in sharded.items()}
    first, *others = groups
    for name in others:
        if groups[name] != groups[first]:
            raise ValueError(
                f"{first} is sharded over ranks {groups[first]}, but {name} over {groups[name]}: "
                f"shard all of a model over one mesh"
            )


def _refuse_other_group(shards: list[int], group: dist.ProcessGroup | None) -> None:
    if group is None:
        raise ValueError(
            "process_group must be the group of the ranks that hold the same shard as this one, "
            "which a sharded model does not tell: process_group=mesh['replicate'].get_group()"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError("process_group is one that this rank is not in: give each rank its own")
    replicas = members(group)
    here = dist.get_rank()
    if set(shards) & set(replicas) != {here}:
        raise ValueError(
            f"process_group is of ranks {replicas}, and the model is sharded over {shards}: they "
            f"must share rank {here} alone, which exchanges its shard with the same shard of other "
            f"replicas. To have these, {CURE}"
        )


def _words(parameter: DTensor) -> str:
    """Where a parameter lies."""
    placements = ", ".join(map(str, parameter.placements))
    dimensions = parameter.device_mesh.ndim
    return f"({placements}) on a mesh of {dimensions} dimension{'s' if dimensions > 1 else ''}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
