"""Ranks whose gradients are on a GPU, real or pretended, get what ranks on the CPU get."""

from typing import Any

import pytest
import torch

from tests import pretend_cuda
from tests.table import every_family
from tests.test_on_cuda import assert_same, trained


def on_cpu(row) -> Any:
    return trained(row, torch.device("cpu"), torch.float32)


def on_pretended_gpu(row) -> Any:
    with pretend_cuda.pretend():
        return trained(row, pretend_cuda.CUDA, torch.float32)


def on_gpu(row) -> Any:
    """All ranks share one."""
    return trained(row, torch.device("cuda", 0), torch.float32)


@every_family
@pytest.mark.parametrize(
    "there", [on_pretended_gpu, pytest.param(on_gpu, marks=pytest.mark.needs_cuda)]
)
def test_ranks_agree_with_ranks_on_the_cpu(ranks, row, there):
    for ours, theirs in zip(ranks.run(3, there, row), ranks.run(3, on_cpu, row), strict=True):
        assert_same(ours, theirs)
