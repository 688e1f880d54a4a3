"""Sharded models: the tests' small ones in FSDP2, and any function of these tests run over them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

import ddp_compress as dc
from ddp_compress.step import shard_gradients
from tests.table import Row


def mesh_of(shards: int) -> DeviceMesh:
    """All ranks, in replicas of so many shards."""
    replicas = dist.get_world_size() // shards
    return init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("replicate", "shard"))


def sharded(model: nn.Module, mesh: DeviceMesh, **options: Any) -> nn.Module:
    """The model cut up, its first child by itself."""
    fully_shard(next(model.children()), mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def local(tensor: Tensor) -> Tensor:
    """A tensor's shard."""
    return tensor.detach().to_local()  # type: ignore[attr-defined]


def attach_sharded(
    model: nn.Module,
    row: Row,
    shards: int = 2,
    bucket_cap_mb: float = 25,
    flush_bytes: int = 256 * 1024,
    **options: Any,
) -> tuple[nn.Module, dc.CompressionState]:
    """The model cut up, its gradients compressed between replicas."""
    mesh = mesh_of(shards)
    sharded(model, mesh["shard"], **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_gradients, "BUCKET_BYTES", bucket_cap_mb * 2**20)
        state = dc.attach(
            model,
            row.recipe,
            process_group=mesh["replicate"].get_group(),
            min_numel=row.min_numel,
            flush_bytes=flush_bytes,
        )
    return model, state


def on_shards(shards: int, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, in which `training.wrap` gives models of so many shards."""

    def wrap_sharded(
        model: nn.Module, row: Row, hook: object = None, **options: Any
    ) -> tuple[nn.Module, dc.CompressionState]:
        options.pop("find_unused_parameters", None)  # FSDP has no such option
        return attach_sharded(model, row, shards, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(function.__globals__, "wrap", wrap_sharded)
        return function(*args)
