"""A network that `fully_shard` has cut up: a replica is several ranks, each with a shard of it."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def replicas_and_shards(device: torch.device, shards: int) -> DeviceMesh:
    """Ranks in two dimensions: replicas of the network, and the shards of each."""
    shape = (dist.get_world_size() // shards, shards)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def cut_up(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every layer by itself, then what is left; over one dimension of the mesh alone."""
    for layer in network.children():
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh["shard"])
    fully_shard(network, mesh=mesh["shard"])


def put_together(network: nn.Module, whole: nn.Module) -> None:
    """Let another network of the same kind have all weights; every rank of a replica calls it."""
    options = StateDictOptions(full_state_dict=True)
    whole.load_state_dict(get_model_state_dict(network, options=options))


class LocalModel:
    """A sharded network as a rank's checkpoint holds it: this rank's shards."""

    def __init__(self, network: nn.Module) -> None:
        self._parameters = {name: local(p) for name, p in network.named_parameters()}

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the shards, by name."""
        return {name: shard.clone() for name, shard in self._parameters.items()}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave on this rank."""
        for name, shard in self._parameters.items():
            shard.copy_(saved[name])


class LocalOptimizer:
    """The same of the optimizer of a sharded network's parameters."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, with this rank's shards in the place of sharded tensors."""
        saved = self._optimizer.state_dict()
        state = {
            number: {name: local(value) for name, value in entries.items()}
            for number, entries in saved["state"].items()
        }
        return saved | {"state": state}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave on this rank."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        state = {
            number: {name: sharded_as(parameters[number], v) for name, v in entries.items()}
            for number, entries in saved["state"].items()
        }
        self._optimizer.load_state_dict({**saved, "state": state})


def local(value: Any) -> Any:
    """A sharded tensor's shard on this rank; anything else as it is."""
    return value.to_local().detach() if isinstance(value, DTensor) else value


def sharded_as(parameter: Any, value: Any) -> Any:
    """A shard of a tensor that lies as a parameter does; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != parameter.to_local().shape:
        return value
    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
