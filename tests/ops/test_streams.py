"""CUDA kernels work on the current stream alone, and the host runs ahead of them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.needs_cuda

native = torch.ops.ddp_compress

NUMEL, K = 1_000_000, 10_000
A_TENTH_OF_A_SECOND = 200_000_000  # clock cycles, about


@pytest.fixture
def given() -> SimpleNamespace:
    """Arguments of the ops; tables are on the CPU."""
    torch.manual_seed(0)
    numel, positions = NUMEL, torch.arange(0, NUMEL, NUMEL // K, dtype=torch.int32, device="cuda")
    grad, memory = torch.randn(2, numel, device="cuda")
    bounds = torch.tensor([0, numel // 3, numel])
    bits, scales = native.sign_encode(grad, bounds, 1024)
    return SimpleNamespace(
        grad=grad,
        memory=memory,
        bounds=bounds,
        groups=torch.tensor([0, 1]),
        ks=torch.tensor([K // 3, K - K // 3]),
        salts=torch.tensor([7, 8]),
        positions=positions,
        values=torch.randn(K, device="cuda"),
        counts=torch.tensor([K // 2, K // 2], device="cuda"),
        bytes=native.elias_fano_encode(positions, numel, K),
        votes=torch.ones_like(positions),
        keys=torch.randint(-100, 100, (numel,), device="cuda"),
        bits=bits,
        scales=scales,
    )


def accumulate(a: SimpleNamespace) -> tuple[Tensor, Tensor]:
    after, grad = torch.empty_like(a.memory), a.grad.clone()
    native.accumulate(a.memory, grad, None, 0.0, after, None)
    return after, grad


def scatter_add(a: SimpleNamespace) -> Tensor:
    out = a.grad.clone()
    native.scatter_add(out, 0, [a.positions] * 2, [a.values] * 2, 0.5)
    return out


CALLS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "topk": lambda a: native.topk(
        [a.grad], [a.memory], [a.memory], 0.9, a.bounds, a.groups, a.ks, a.salts, False, []
    ),
    "segment_means": lambda a: native.segment_means(a.values, a.counts),
    "accumulate": accumulate,
    "scatter_add": scatter_add,
    "elias_fano_encode": lambda a: native.elias_fano_encode(a.positions, NUMEL, K),
    "elias_fano_decode": lambda a: native.elias_fano_decode(a.bytes, NUMEL, K),
    "golomb_encode": lambda a: native.golomb_encode(a.positions, a.bounds),
    "tally": lambda a: native.tally([a.positions, a.positions + 1]),
    "vote_keys": lambda a: native.vote_keys(a.positions, a.votes, a.bounds, a.salts, 2, True),
    "largest": lambda a: native.largest(a.keys, K),
    "sign_encode": lambda a: native.sign_encode(a.grad, a.bounds, 1024),
    "sign_decode": lambda a: native.sign_decode(a.bits, a.scales, a.bounds, 1024),
}


def call(op: str, given: SimpleNamespace) -> list[Tensor]:
    result = CALLS[op](given)
    return [result] if isinstance(result, Tensor) else list(result)


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def warm_call(op: str, given: SimpleNamespace) -> list[Tensor]:
    """What an op gives; the next call finds its kernels loaded, and memory for other results."""
    expected, again = call(op, given), call(op, given)
    assert same(again, expected)
    return expected


def test_every_op_is_in_the_table():
    ops = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    prefix = "ddp_compress::"
    assert {op.removeprefix(prefix) for op in ops if op.startswith(prefix)} == set(CALLS)


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
        self.counts = self.ks.cuda()
        self.grad, self.residual, self.momentum = torch.empty(3, numel, device="cuda")

    def start(self, seed: int) -> None:
        torch.manual_seed(seed)
        for tensor in (self.grad, self.residual, self.momentum):
            tensor.normal_()

    def run(self) -> list[Tensor]:
        indices, values, finite = native.topk(
            *([self.grad], [self.residual], [self.momentum], 0.9),
            *(self.bounds, self.groups, self.ks, torch.empty(0, dtype=torch.int64), False, []),
        )
        means = native.segment_means(values, self.counts)
        message = native.elias_fano_encode(indices, self.numel, self.k)
        decoded = [
            native.elias_fano_decode(message, self.numel, self.k)[0] for _ in range(self.ranks)
        ]
        after = [torch.empty_like(each) for each in (self.residual, self.momentum)]
        native.accumulate(self.residual, self.grad, self.momentum, 0.9, *after)
        native.scatter_add(self.grad, 0, decoded, [values] * self.ranks, 1 / self.ranks)
        return [indices, values, finite, means, message, *decoded, *after]

    def result(self, outputs: list[Tensor]) -> list[Tensor]:
        return [each.clone() for each in (*outputs, self.grad)]


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


def test_a_step_is_few_device_operations():
    step = Step(numel=6_500_000, k=65_000, params=20, ranks=4)
    step.start(seed=0)
    step.run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step.run()
        torch.cuda.synchronize()
    work = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    assert 9 <= len(work) <= 12, work
