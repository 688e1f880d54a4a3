"""A pretended GPU, for machines that have none: the whole way of a gradient on "cuda".

Its tensors say that they are on ``cuda:0`` and hold their numbers in the host's memory. As on a
GPU, tensors of the two must not meet in one operation. The package's ops run their CUDA kernels, by
way of `tests.emulation`. What it cannot show: streams that run ahead, and time.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ddp_compress import ops
from ddp_compress.message import plan, shards
from ddp_compress.ops import devices
from ddp_compress.step import worker
from tests import emulation

CUDA = torch.device("cuda", 0)
# Arguments of ops that stay on the host.
TABLES = {"bounds", "groups", "ks", "salts", "sizes", "signs", "noises", "free", "sent"}
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OnCuda(Tensor):
    """A tensor that says it is on the GPU."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "OnCuda":
        # To C++ it is on the CPU: a build without CUDA refuses to look at another.
        wrapper = Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), dtype=host.dtype, device="cpu"
        )
        wrapper.host = host
        return wrapper

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def record_stream(self, s: Any) -> None:
        """There is only one."""

    def tolist(self) -> Any:
        return self.host.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnCuda({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        return on_either(func, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """Where tensors may be made on the GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return on_either(func, args, kwargs or {})


def on_either(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation, on the host or on the GPU."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = any(isinstance(leaf, OnCuda) for leaf in leaves)
    made_there = kwargs.get("device") == CUDA
    kernel = func
    if func.namespace == "ddp_compress" and here:
        named = zip(func._schema.arguments, args, strict=False)
        for argument, value in named:
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor) and isinstance(tensor, OnCuda) == (
                    argument.name in TABLES
                ):
                    raise RuntimeError(f"{func}: {argument.name} is on the wrong device")
        kernel = getattr(torch.ops.ddp_compress_emulated, func._schema.name.split("::")[1])
    elif here and func not in COPIES:
        strangers = [t for t in leaves if not isinstance(t, OnCuda) and t.ndim > 0]
        if strangers:
            raise RuntimeError(f"{func}: expected all tensors on one device, but one is on the CPU")
    kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    if func is torch.ops.aten._to_copy.default and not kwargs.get("dtype"):
        result = args[0].host.clone() if isinstance(args[0], OnCuda) else args[0].clone()
    else:
        result = kernel(*to_host(args), **to_host(kwargs))
    returns = func._schema.returns
    if returns and returns[0].alias_info is not None and returns[0].alias_info.is_write:
        return kwargs.get("out", args[0])  # in place: the same tensor comes back
    return tree_map_only(Tensor, OnCuda, result) if here or made_there else result


def to_host(values: Any) -> Any:
    return tree_map_only(OnCuda, lambda tensor: tensor.host, values)


def host_of(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, wherever it says it is."""
    return tensor.host if isinstance(tensor, OnCuda) else tensor


@contextmanager
def nothing_kept() -> Iterator[None]:
    """In here nothing is on a device that stays there from step to step, nor after."""
    caches = plan.tables_for, shards.cuts_of
    for cache in caches:
        cache.cache_clear()
    try:
        with patch.dict(devices._side_streams, clear=True):
            yield
    finally:
        for cache in caches:
            cache.cache_clear()


@contextmanager
def pretend() -> Iterator[None]:
    """In here `tensor.to(CUDA)` gives what says it is on a GPU."""
    emulation.load()
    drive = worker._drive

    def drive_pretending(*args: Any) -> Any:
        with Pretending():
            return drive(*args)

    with (
        patch.object(torch.cuda, "_lazy_init", lambda: None),
        patch.object(torch.cuda, "set_device", lambda device: None),
        patch.object(torch.cuda, "stream", lambda stream: nullcontext()),
        patch.object(torch.cuda, "Stream", MagicMock()),
        patch.object(torch.cuda, "current_stream", MagicMock()),
        nothing_kept(),
        patch.object(torch.cuda, "is_current_stream_capturing", lambda: False),
        patch.object(torch.futures, "Future", lambda devices: _Future()),
        patch.object(ops, "CUDA", True),
        patch.object(worker, "_drive", drive_pretending),
        torch.no_grad(),
        Pretending(),
    ):
        yield


_Future = torch.futures.Future
