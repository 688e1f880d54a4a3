"""PyTorch's default dtype and device are for the user's own tensors: nothing here follows them."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ddp_compress
from ddp_compress import CompressionState, LocalUpdates
from tests.distributed.training import MANY_BUCKETS, digest, grads
from tests.plain import without_kernels
from tests.table import ROWS, Row, every_recipe

DEFAULTS = [torch.float64, torch.bfloat16, torch.device("meta")]  # nothing can be read from "meta"


@contextmanager
def default(choice: torch.dtype | torch.device | None) -> Iterator[None]:
    """What factories make that are told nothing; None leaves it as it is."""
    before = torch.get_default_dtype()
    if isinstance(choice, torch.dtype):
        torch.set_default_dtype(choice)
    torch.set_default_device(choice if isinstance(choice, torch.device) else None)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


def small_model() -> nn.Module:
    """Kernels of a convolution, a norm with buffers, a matrix."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    )


def gradients(model: nn.Module, step: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {name: torch.randn(p.shape, generator=draw) for name, p in model.named_parameters()}


def two_steps(row: Row, choice: torch.dtype | torch.device | None) -> str:
    """All that comes out of them, and all that stays."""
    model = small_model()
    given = [gradients(model, step) for step in (1, 2)]
    with default(choice):
        state = CompressionState(model, row.recipe, min_numel=row.min_numel)
        means = [state.reduce(each) for each in given]
        kept = state.state_dict()
        again = CompressionState(model, row.recipe, min_numel=row.min_numel)
        again.load_state_dict(kept)
    stayed = [t for by_name in kept["tensors"].values() for _, t in sorted(by_name.items())]
    return digest([*(mean[name] for mean in means for name in sorted(mean)), *stayed])


@every_recipe
@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_no_recipe_follows_pytorchs_defaults(row, kernels):
    with without_kernels() if kernels == "reference" else nullcontext():
        expected = two_steps(row, None)
        for choice in DEFAULTS:
            assert two_steps(row, choice) == expected, choice


def trained(row: Row, choice: torch.dtype | torch.device | None) -> list[str]:
    """Three steps under the hook, then two rounds of local steps."""
    draw = torch.Generator().manual_seed(dist.get_rank())
    batches = [torch.randn(4, 2, 4, 4, generator=draw) for _ in range(7)]
    hooked, local = (
        DistributedDataParallel(small_model(), bucket_cap_mb=b) for b in (25, MANY_BUCKETS)
    )
    with default(choice):
        ddp_compress.attach(hooked, row.recipe, min_numel=row.min_numel)
        state = CompressionState(local, row.recipe, min_numel=row.min_numel)
        inner = torch.optim.SGD(local.parameters(), lr=0.05)
        optimizer = LocalUpdates(inner, local, state, period=2)
        for batch in batches[:3]:
            hooked(batch).square().mean().backward()
        for batch in batches[3:]:
            optimizer.zero_grad()
            local(batch).square().mean().backward()
            optimizer.step()
        kept = optimizer.state_dict()
        optimizer.load_state_dict(kept)
    return [digest(grads(hooked)), digest(local.state_dict().values())]


@pytest.mark.parametrize("row", [ROWS["topk"], ROWS["smartidx"]], ids=["topk", "smartidx"])
def test_neither_the_hook_nor_local_updates_follow_pytorchs_defaults(ranks, row):
    expected = ranks.run(2, trained, row, None)
    for choice in DEFAULTS:
        assert ranks.run(2, trained, row, choice) == expected, choice


def factories() -> set[str]:
    """PyTorch's functions that make a tensor of the default dtype or on the default device."""
    documented = {name for name in dir(torch) if "device=None" in str(getattr(torch, name).__doc__)}
    silent = {"as_tensor", "asarray", "scalar_tensor"}  # about it in their documentation
    return {name for name in documented | silent if not name.endswith("_like")}


def test_every_tensor_made_in_the_package_names_its_dtype_and_device():
    made = factories()
    assert {"arange", "empty", "full", "ones", "tensor", "zeros"} <= made
    careless = []
    for file in Path(ddp_compress.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if ast.unparse(call.func.value) == "torch" and call.func.attr in made:
                given = {keyword.arg for keyword in call.keywords}
                if not {"dtype", "device"} <= given:
                    careless.append(f"{file}:{call.lineno}: {ast.unparse(call)}")
    assert not careless, "name dtype= and device=, or take ddp_compress.ops.host"
