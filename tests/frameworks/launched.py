"""What tests of all frameworks share: ranks as torchrun starts them, data, a model."""

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def launched(function: Callable[..., Any], *args: Any) -> tuple[Any, list[str]]:
    """Call a function as on a rank that torchrun has started; also what was warned of by us."""
    forget_ranks()
    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    torchrun = {
        "GROUP_RANK": "0",
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",  # nobody is to ask there: the ranks have met
        "RANK": rank,
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": size,
    }
    with patch.dict(os.environ, torchrun), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*args)
    ours = (str(each.message) for each in caught)
    return result, [each for each in ours if "ompress" in each]


def forget_ranks() -> None:
    """Accelerate remembers how many there were."""
    if "accelerate" in sys.modules:
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))


def dataset() -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 8, generator=draw)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def loader() -> DataLoader[Any]:
    """Twelve batches, six a rank."""
    return DataLoader(dataset(), batch_size=8)


def flat(parameters: Iterable[Tensor]) -> bytes:
    return torch.cat([p.detach().flatten() for p in parameters]).numpy().tobytes()
