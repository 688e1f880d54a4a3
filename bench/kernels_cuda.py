"""The CUDA kernels beside a device copy: what ``bench/kernels.py --device cuda`` measures.

Every candidate is captured once in a CUDA graph and its replays are timed by device events, so that
Python's time between launches does not count (but for what waits for the device, which no graph
holds). Replays go round several sets of inputs, more bytes than the L2 cache holds. The floor is
what a copy of as many bytes takes, 16 an element: read the gradient and the residual, write the
residual and the result.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from ddp_compress import ops

WORLD_SIZE = 4
NO_SALTS = torch.empty(0, dtype=torch.int64)
ROTATED_BYTES = 2**30  # of inputs: many times any L2 cache
PER_ELEMENT = 16  # bytes of the floor


@dataclass(frozen=True)
class CudaRow:
    """One measured candidate."""

    numel: int
    density: float
    name: str
    microseconds: float
    of_copy: float  # share of the copy's bandwidth, were 16 bytes an element moved
    launches: int


class Inputs:
    """The tensors of one size and density, on the device."""

    def __init__(self, numel: int, density: float) -> None:
        self.numel, self.k = numel, round(numel * density)
        self.bounds, self.groups = torch.tensor([0, numel]), torch.tensor([0])
        self.ks = torch.tensor([self.k])
        self.counts = self.ks.cuda()  # of what is selected: random values have as many of a sign
        self.grad = torch.randn(numel, device="cuda") ** 3
        self.residual = torch.randn(numel, device="cuda") ** 3
        self.sums = torch.empty_like(self.residual)
        self.positions = [self._positions() for _ in range(WORLD_SIZE)]
        self.values = torch.randn(self.k, device="cuda")
        kernels = torch.ops.ddp_compress
        self.messages = [kernels.elias_fano_encode(p, numel, self.k) for p in self.positions]
        self.signs = kernels.sign_encode(self.grad, self.bounds, 4096)
        self.tally = ops.tally(self.positions)
        self.salts = torch.tensor([7])
        self.keys = self.vote_keys()

    def _positions(self) -> Tensor:
        return torch.rand(self.numel, device="cuda").topk(self.k).indices.sort().values.int()

    def select(self, heavier: bool = False, sums: bool = False) -> tuple[Tensor, Tensor]:
        """As kernels give them: nothing waits to cut off unused slots."""
        kept = [self.sums] if sums else []
        tables = (self.bounds, self.groups, self.ks, NO_SALTS)
        indices, values, _ = torch.ops.ddp_compress.topk(
            [self.grad], [self.residual], [], 0.0, *tables, heavier, kept
        )
        return indices, values

    def vote_keys(self) -> Tensor:
        return torch.ops.ddp_compress.vote_keys(
            *self.tally, self.bounds, self.salts, WORLD_SIZE, False
        )

    def sbc_step(self) -> None:
        """Select, encode; then decode four ranks' messages, retain and write the mean."""
        kernels = torch.ops.ddp_compress
        indices, values = self.select(heavier=True, sums=True)
        mean = kernels.segment_means(values, self.counts)
        kernels.elias_fano_encode(indices, self.numel, self.k)
        decoded = [kernels.elias_fano_decode(m, self.numel, self.k)[0] for m in self.messages]
        expanded = mean.expand(self.k).contiguous()
        self.grad.zero_()
        kernels.scatter_add(self.sums, 0, [indices], [expanded], -1.0)
        kernels.scatter_add(self.grad, 0, decoded, [expanded] * WORLD_SIZE, 1 / WORLD_SIZE)

    def pytorch_step(self) -> None:
        """What one would write without these kernels: top-k of the sum, and a scatter."""
        self.residual.add_(self.grad)
        chosen = self.residual.abs().topk(self.k).indices
        values = self.residual[chosen]
        self.residual[chosen] = 0.0
        self.grad.zero_().scatter_(0, chosen, values)

    def candidates(self) -> dict[str, Callable[[], object]]:
        """By name, what to run."""
        kernels = torch.ops.ddp_compress
        numel, k, bounds = self.numel, self.k, self.bounds
        return {
            "select top-k": self.select,
            "select top-k, sums left": partial(self.select, sums=True),
            "select heavier side": partial(self.select, heavier=True),
            "accumulate": lambda: kernels.accumulate(self.residual, self.grad, None, 0.0),
            "scatter_add, W=4": lambda: kernels.scatter_add(
                self.sums, 0, self.positions, [self.values] * WORLD_SIZE, 0.25
            ),
            "elias_fano_encode": lambda: kernels.elias_fano_encode(self.positions[0], numel, k),
            "elias_fano_decode": lambda: kernels.elias_fano_decode(self.messages[0], numel, k),
            "sign_encode": lambda: kernels.sign_encode(self.grad, bounds, 4096),
            "sign_decode": lambda: kernels.sign_decode(*self.signs, bounds, 4096),
            "tally, W=4": lambda: kernels.tally(self.positions),
            "vote_keys": self.vote_keys,
            "largest": lambda: kernels.largest(self.keys, k),
            "checksum": lambda: kernels.checksum(self.messages[0]),
            "whole SBC step, W=4": self.sbc_step,
            "torch.topk(|r+g|) and scatter": self.pytorch_step,
        }


def run(numel: int, density: float, rounds: int) -> list[CudaRow]:
    """Medians over interleaved rounds; the copy is among the candidates of every round."""
    sets = -(-ROTATED_BYTES // (PER_ELEMENT * numel))
    inputs = [Inputs(numel, density) for _ in range(sets)]
    source, copy = (torch.empty(2 * numel, device="cuda") for _ in range(2))
    floor = "copy, 16 bytes an element"
    work: dict[str, list[Callable[[], object]]] = {floor: [lambda: copy.copy_(source)]}
    for each in inputs:
        for name, function in each.candidates().items():
            work.setdefault(name, []).append(function)
    launches = {name: _launches(functions[0]) for name, functions in work.items()}
    replays = {
        name: itertools.cycle([_captured(function) for function in functions])
        for name, functions in work.items()
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    label = f"{numel / 1e6:.1f} M, {density:.1%}"
    for _ in tqdm(range(rounds), desc=label, leave=False):
        for name, replay in replays.items():
            times[name].append(_microseconds(next(replay)))
    median = {name: statistics.median(each) for name, each in times.items()}
    return [
        CudaRow(numel, density, name, median[name], median[floor] / median[name], launches[name])
        for name in work
    ]


def _captured(function: Callable[[], object]) -> Callable[[], None]:
    function()  # what is set up once must not be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _microseconds(replay: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def _launches(function: Callable[[], object]) -> int:
    """How many kernels, copies and fills it puts on the device."""
    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiled.events())
