"""CUDA kernels work on the current stream alone, and the host runs ahead of them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import ddp_compress  # noqa: F401 - loads the kernels
from tests import emulation

needs_cuda = pytest.mark.needs_cuda

native = torch.ops.ddp_compress

BLOCK = 1024  # elements
NUMEL, K = 1024 * BLOCK, 8 * BLOCK
A_TENTH_OF_A_SECOND = 200_000_000  # clock cycles, about


def arguments(kernels: Any, numel: int, k: int, device: str) -> SimpleNamespace:
    """Kernels and what to give them: lists of exactly k positions; tables are on the CPU."""
    torch.manual_seed(0)
    positions = torch.arange(0, numel, numel // k, dtype=torch.int32, device=device)
    grad, memory = torch.randn(2, numel, device=device)
    bounds, salts = torch.tensor([0, numel // 3, numel]), torch.tensor([7, 8])
    bits, scales = kernels.sign_encode(grad, bounds, 1024)
    free, sent = torch.arange(256) % 32, torch.arange(16352) % 3 > 0
    tables = bounds.diff(), salts, free, sent
    rotated = kernels.rotated_encode(grad, *tables[:2], salts, *tables[2:], True, 2, 4)
    values = torch.randn(k, device=device)
    bytes_of_positions = kernels.elias_fano_encode(positions, numel, k)
    return SimpleNamespace(
        kernels=kernels,
        numel=numel,
        k=k,
        grad=grad,
        memory=memory,
        bounds=bounds,
        groups=torch.tensor([0, 1]),
        group_ends=torch.tensor([numel // 3, numel], dtype=torch.int32, device=device),
        ks=torch.tensor([k // 3, k - k // 3]),
        salts=salts,
        positions=positions,
        values=values,
        counts=torch.tensor([k // 2, k - k // 2], device=device),
        bytes=bytes_of_positions,
        body=torch.cat([bytes_of_positions, values.view(torch.uint8)]),
        votes=torch.ones_like(positions),
        keys=torch.randint(-100, 100, (numel,), device=device),
        bits=bits,
        scales=scales,
        tables=tables,
        rotated=rotated,
    )


@pytest.fixture
def given() -> SimpleNamespace:
    """What ops are given on a GPU."""
    return arguments(native, NUMEL, K, "cuda")


def accumulate(a: SimpleNamespace) -> tuple[Tensor, Tensor]:
    after, grad = torch.empty_like(a.memory), a.grad.clone()
    a.kernels.accumulate(a.memory, grad, None, 0.0, after, None)
    return after, grad


def scatter_add(a: SimpleNamespace) -> Tensor:
    out = a.grad.clone()
    a.kernels.scatter_add(out, 0, [a.positions] * 2, [a.values] * 2, 0.5)
    return out


def sign_add(a: SimpleNamespace) -> Tensor:
    out = a.grad.clone()
    a.kernels.sign_add(out, [a.bits] * 2, [a.scales] * 2, a.bounds, 1024, 0.5)
    return out


def rotated_add(a: SimpleNamespace) -> Tensor:
    out = a.grad.clone()
    a.kernels.rotated_add(out, 0, [a.rotated] * 2, *a.tables, 4, 3.0, 0.5)
    return out


CALLS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "topk": lambda a: a.kernels.topk(
        *([a.grad], [a.memory], [a.memory], 0.9, a.bounds, a.groups, a.ks, a.salts, False),
        *([torch.empty_like(a.memory)], [torch.empty_like(a.memory)]),
    ),
    "segment_means": lambda a: a.kernels.segment_means(a.values, a.counts),
    "accumulate": accumulate,
    "scatter_add": scatter_add,
    "elias_fano_encode": lambda a: a.kernels.elias_fano_encode(a.positions, a.numel, a.k),
    "elias_fano_decode": lambda a: a.kernels.elias_fano_decode(a.bytes, a.numel, a.k),
    "entries_decode": lambda a: a.kernels.entries_decode(
        [a.body] * 3, a.group_ends, a.numel, a.k, torch.float32
    ),
    "golomb_encode": lambda a: a.kernels.golomb_encode(a.positions, a.bounds),
    "tally": lambda a: a.kernels.tally([a.positions, a.positions + 1]),
    "vote_keys": lambda a: a.kernels.vote_keys(a.positions, a.votes, a.bounds, a.salts, 2, True),
    "largest": lambda a: a.kernels.largest(a.keys, a.k),
    "sign_encode": lambda a: a.kernels.sign_encode(a.grad, a.bounds, 1024),
    "sign_decode": lambda a: a.kernels.sign_decode(a.bits, a.scales, a.bounds, 1024),
    "sign_add": sign_add,
    "rotated_encode": lambda a: a.kernels.rotated_encode(
        a.grad, *a.tables[:2], a.salts, *a.tables[2:], True, 2, 4
    ),
    "rotated_add": rotated_add,
    "rotated_decode": lambda a: a.kernels.rotated_decode(a.rotated, *a.tables, 4),
}


def call(op: str, given: SimpleNamespace) -> list[Tensor]:
    result = CALLS[op](given)
    return [result] if isinstance(result, Tensor) else list(result)


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether they are, bit for bit."""
    return all(
        a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(found, expected, strict=True)
    )


def warm_call(op: str, given: SimpleNamespace) -> list[Tensor]:
    """What an op gives; the next call finds its kernels loaded, and memory for other results."""
    expected, again = call(op, given), call(op, given)
    assert same(again, expected)
    return expected


def test_every_kernel_is_in_the_table():
    emulation.load()
    ops = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    prefix = "ddp_compress_emulated::"
    assert {op.removeprefix(prefix) for op in ops if op.startswith(prefix)} == set(CALLS)


@pytest.mark.parametrize("op", CALLS)
def test_every_call_is_right(op):
    """On a GPU it would be too late to learn of it."""
    emulation.load()
    found, expected = (
        call(op, arguments(kernels, numel=4 * BLOCK, k=32, device="cpu"))
        for kernels in (torch.ops.ddp_compress_emulated, native)
    )
    assert same(found, expected)


@needs_cuda
@pytest.mark.parametrize("op", CALLS)
def test_an_op_has_nothing_to_do_with_other_streams(op, given):
    stream, other = torch.cuda.Stream(), torch.cuda.default_stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        expected = warm_call(op, given)
        with torch.cuda.stream(other):
            torch.cuda._sleep(A_TENTH_OF_A_SECOND)
        assert same(call(op, given), expected)
    assert not other.query(), "the op waited for the other stream"


@needs_cuda
@pytest.mark.parametrize("op", [op for op in CALLS if op != "golomb_encode"])
def test_the_host_does_not_wait(op, given):
    expected = warm_call(op, given)
    torch.cuda._sleep(A_TENTH_OF_A_SECOND)
    torch.cuda.set_sync_debug_mode("error")  # which knows of what PyTorch does
    try:
        found = call(op, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.cuda.current_stream().query(), "the op waited for the device"
    assert same(found, expected)


class Step:
    """What a rank does for a message, and with those of all ranks."""

    def __init__(self, numel: int, k: int, params: int, ranks: int) -> None:
        self.numel, self.k, self.ranks = numel, k, ranks
        self.bounds = torch.linspace(0, numel, params + 1).long()
        self.groups = torch.arange(params)
        self.ks = torch.full((params,), k // params)
        self.ends = self.bounds[1:].int().cuda()
        self.grad, self.residual, self.momentum = torch.empty(3, numel, device="cuda")

    def start(self, seed: int) -> None:
        torch.manual_seed(seed)
        for tensor in (self.grad, self.residual, self.momentum):
            tensor.normal_()

    def run(self) -> list[Tensor]:
        after = [torch.empty_like(each) for each in (self.residual, self.momentum)]
        tables = (self.bounds, self.groups, self.ks, torch.empty(0, dtype=torch.int64))
        indices, values, finite, counts, means = native.topk(
            *([self.grad], [self.residual], [self.momentum], 0.9), *tables, True, *zip(after)
        )
        positions = native.elias_fano_encode(indices, self.numel, self.k)
        body = torch.cat([positions, means.view(torch.uint8)])
        bodies = [body] * self.ranks
        decoded = native.entries_decode(bodies, self.ends, self.numel, self.k, None)
        native.scatter_add(self.grad, 0, [*decoded[0]], [*decoded[1]], 1 / self.ranks)
        return [indices, values, finite, counts, body, *decoded, *after]

    def result(self, outputs: list[Tensor]) -> list[Tensor]:
        return [each.clone() for each in (*outputs, self.grad)]


@needs_cuda
def test_a_captured_step_replays():
    step = Step(numel=1_000_003, k=10_000, params=20, ranks=3)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # loads the kernels, which must not happen in a capture
        step.start(seed=0)
        step.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step.run()
    for seed in (1, 2):
        step.start(seed)
        expected = step.result(step.run())
        step.start(seed)
        graph.replay()
        assert same(step.result(captured), expected)


@needs_cuda
def test_a_step_is_few_device_operations():
    step = Step(numel=6_500_000, k=65_000, params=20, ranks=4)
    step.start(seed=0)
    step.run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step.run()
        torch.cuda.synchronize()
    work = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    assert 8 <= len(work) <= 10, work
