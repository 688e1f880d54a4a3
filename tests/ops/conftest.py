from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import emulation


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [moved(each, device) for each in value] if isinstance(value, list | tuple) else value


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def device(request) -> str:
    """Where a CUDA kernel runs: on a GPU, or thread by thread on the CPU."""
    if request.param == "emulated":
        emulation.load()
    return request.param


@pytest.fixture
def on_device(device) -> Callable[..., Any]:
    """Calls an op's CUDA kernel: tensors come from the CPU and go back there.

    Tables, which stay on the CPU, are given by keyword.
    """

    def call(op: str, *args: Any, **tables: Tensor) -> Any:
        if device == "emulated":
            return getattr(torch.ops.ddp_compress_emulated, op)(*args, **tables)
        result = getattr(torch.ops.ddp_compress, op)(*moved(args, "cuda"), **tables)
        return moved(result, "cpu")

    return call
