"""Code written for a GPU a rank, run on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class OnCpu(TorchFunctionMode):
    """Takes every device to be the CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cuda:
            return args[0]
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        return func(*(on_cpu(args) if func is Tensor.to else args), **kwargs)


def on_cpu(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of ``to``, with the CPU in place of any other device."""
    return tuple(CPU if is_device(each) else each for each in arguments)


def is_device(value: object) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool)
    return number or isinstance(value, (str, torch.device))


@contextmanager
def no_gpu(count: int) -> Iterator[None]:
    """Pretend that there are GPUs, and that all that is put on them is on the CPU.

    Args:
        count: of the GPUs.
    """
    make, move = DistributedDataParallel.__init__, nn.Module.to

    @wraps(make)
    def without_devices(model: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        make(model, *args, **{**kwargs, "device_ids": None, "output_device": None})

    @wraps(move)
    def nowhere(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return move(module, *on_cpu(args), **kwargs)

    fakes: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "current_device": lambda: 0,
        "get_rng_state": lambda device=None: torch.empty(0),
        "set_rng_state": lambda state, device=None: None,
    }
    with (
        mock.patch.multiple(torch.cuda, **fakes),
        mock.patch.object(torch.accelerator, "current_stream", mock.Mock()),
        mock.patch.object(DistributedDataParallel, "__init__", without_devices),
        # Inductor would look for the GPUs.
        mock.patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")),
        mock.patch.multiple(nn.Module, to=nowhere, cuda=lambda module, device=None: module),
        OnCpu(),
    ):
        yield
