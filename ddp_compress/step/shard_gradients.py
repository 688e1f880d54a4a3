"""The gradients of a sharded model's local shards as flat ones, and back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor  # noqa: TID251 - a type alone

from ddp_compress.message.layout import Layout
from ddp_compress.message.memory_format import flatten
from ddp_compress.ops.large_pages import in_large_pages
from ddp_compress.step.parameters import Parameters
from ddp_compress.step.sharded_model import local_of

BUCKET_BYTES = 25 * 2**20  # as DDP's buckets


class ShardBucket:
    """Some parameters of one dtype and device, whose gradients travel side by side.

    Args:
        layout: of their local shards.
        parameters: in that order.
    """

    def __init__(self, layout: Layout, parameters: Sequence[Tensor]) -> None:
        self.layout = layout
        self._parameters = parameters
        self._flat: Tensor | None = None

    def gather(self) -> Tensor:
        """Their gradients [N], zeros for those that have none; the same memory at every step."""
        like = local_of(self._parameters[0])
        if self._flat is None or (self._flat.dtype, self._flat.device) != (like.dtype, like.device):
            self._flat = in_large_pages(like.new_empty(self.layout.numel))
        for parameter, part in zip(self._parameters, self._parts(self._flat), strict=True):
            if parameter.grad is None:
                part.zero_()
            else:
                part.copy_(flatten(local_of(parameter.grad), local_of(parameter)))
        return self._flat

    def stand_in(self) -> Tensor:
        """Zeros [N] that take no memory, in the place of gradients that could not be had."""
        return local_of(self._parameters[0]).new_zeros(()).expand(self.layout.numel)

    def write_back(self, mean: Tensor, names: Collection[str]) -> None:
        """Let these parameters have their part of a mean [N] for a gradient."""
        parts = zip(self.layout.names, self._parameters, self._parts(mean), strict=True)
        for name, parameter, part in parts:
            if name in names:
                if parameter.grad is None:
                    parameter.grad = _empty_gradient(parameter)
                grad = local_of(parameter.grad)
                grad.copy_(part.view(grad.shape))

    def _parts(self, flat: Tensor) -> Sequence[Tensor]:
        return flat.split(list(self.layout.sizes))


def shard_buckets(parameters: Parameters) -> list[ShardBucket]:
    """Buckets for all trained parameters, in their order: the same on all ranks of one shard."""
    kinds: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
    for name, parameter in parameters.named.items():
        if parameter.requires_grad:
            kinds.setdefault((parameter.dtype, parameter.device), {})[name] = parameter
    return [
        ShardBucket(parameters.layout_of(list(named)), list(named.values()))
        for kind in kinds.values()
        for named in _cut(kind)
    ]


def _cut(named: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Some after another, no more at a time than fit a bucket, at least one."""
    bucket: dict[str, Tensor] = {}
    room = BUCKET_BYTES
    for name, parameter in named.items():
        size = local_of(parameter).nbytes
        if bucket and size > room:
            yield bucket
            bucket, room = {}, BUCKET_BYTES
        bucket[name] = parameter
        room -= size
    yield bucket


def _empty_gradient(parameter: Tensor) -> Tensor:
    """A gradient as FSDP would make one, with any numbers in it."""
    assert isinstance(parameter, DTensor), "only such parameters are trained"
    return DTensor.from_local(
        torch.empty_like(local_of(parameter)),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
