"""The CUDA kernels beside a device copy: what ``bench/kernels.py --device cuda`` measures.

Every candidate is captured in a CUDA graph and its replays are timed by device events, behind a
kernel that only waits until the host has launched them: so the host's time does not count. (No
graph holds what waits for the device: golomb_encode is missing.) Every replay takes other inputs
than the one before, and comes back to them when more bytes than the L2 cache holds have gone by.
The floor is what a copy of as many bytes takes, 16 an element: read the gradient and the residual,
write the residual and the result.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

import device_work
from ddp_compress import ops
from gpu import CUDA

WORLD_SIZE = 4
NO_SALTS = torch.empty(0, dtype=torch.int64)
ROTATED_BYTES = 2**30  # of inputs: many times any L2 cache
PER_ELEMENT = 16  # bytes of the floor
HEAD_START = 1_000_000  # clock cycles, some half a millisecond
COPY = "copy, 16 bytes an element"
PIPELINE = "torch.topk(|r+g|) and scatter"


@dataclass(frozen=True)
class CudaRow:
    """One measured candidate."""

    numel: int
    density: float
    name: str
    microseconds: float
    of_copy: float  # share of the copy's bandwidth, were 16 bytes an element moved
    times_faster: float  # than the pipeline of torch.topk and scatter
    launches: int
    waits: int  # of the host for the device


class Inputs:
    """The tensors of one size and density, on the device."""

    def __init__(self, numel: int, density: float) -> None:
        self.numel, self.k = numel, round(numel * density)
        self.bounds, self.groups = torch.tensor([0, numel]), torch.tensor([0])
        self.ks = torch.tensor([self.k])
        self.fresh = [torch.randn(numel, device=CUDA) ** 3 for _ in range(2)]
        self.grad, self.residual = (each.clone() for each in self.fresh)
        self.sums = torch.empty_like(self.residual)
        self.positions = [self._positions() for _ in range(WORLD_SIZE)]
        self.values = torch.randn(self.k, device=CUDA)
        kernels = torch.ops.ddp_compress
        self.messages = [kernels.elias_fano_encode(p, numel, self.k) for p in self.positions]
        mean = torch.tensor([2.0]).to(CUDA).view(torch.uint8)
        self.bodies = [torch.cat([message, mean]) for message in self.messages]
        self.ends = self.bounds[1:].int().to(CUDA)
        self.signs = kernels.sign_encode(self.grad, self.bounds, 4096)
        self.tally = ops.tally(self.positions)
        self.salts = torch.tensor([7])
        self.keys = self.vote_keys()

    def _positions(self) -> Tensor:
        return torch.rand(self.numel, device=CUDA).topk(self.k).indices.sort().values.int()

    def refresh(self) -> None:
        """Undo what a candidate has changed."""
        self.grad.copy_(self.fresh[0])
        self.residual.copy_(self.fresh[1])

    def on_cpu(self) -> Inputs:
        """The same on the CPU."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(twin, name, value.cpu())
            elif isinstance(value, list):
                setattr(twin, name, [each.cpu() for each in value])
        return twin

    def select(self, heavier: bool = False, sums: bool = False) -> tuple[Tensor, ...]:
        """As kernels give them: nothing waits to cut off unused slots."""
        kept = [self.sums] if sums else []
        tables = (self.bounds, self.groups, self.ks, NO_SALTS)
        found: tuple[Tensor, ...] = torch.ops.ddp_compress.topk(
            [self.grad], [self.residual], [], 0.0, *tables, heavier, kept, []
        )
        return found

    def vote_keys(self) -> Tensor:
        return torch.ops.ddp_compress.vote_keys(
            *self.tally, self.bounds, self.salts, WORLD_SIZE, False
        )

    def sbc_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Select, encode; then decode four ranks' messages, retain and write the mean.

        Returns:
            The message, the new residual, the mean.
        """
        kernels = torch.ops.ddp_compress
        indices, *_, mean = self.select(heavier=True, sums=True)
        positions = kernels.elias_fano_encode(indices, self.numel, self.k)
        message = torch.cat([positions, mean.view(torch.uint8)])
        found, worth, _ = self.decode([message, *self.bodies[1:]])
        kernels.scatter_add(self.sums, 0, [found[0]], [worth[0]], -1.0)
        kernels.scatter_add(self.grad, 0, [*found], [*worth], 1 / WORLD_SIZE, True)
        return message, self.sums, self.grad

    def decode(self, bodies: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The lists of all ranks at once."""
        return torch.ops.ddp_compress.entries_decode(bodies, self.ends, self.numel, self.k, None)

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
            "accumulate": lambda: kernels.accumulate(
                self.residual, self.grad, None, 0.0, self.sums, None
            ),
            "scatter_add, W=4": lambda: kernels.scatter_add(
                self.sums, 0, self.positions, [self.values] * WORLD_SIZE, 0.25
            ),
            "elias_fano_encode": lambda: kernels.elias_fano_encode(self.positions[0], numel, k),
            "elias_fano_decode": lambda: kernels.elias_fano_decode(self.messages[0], numel, k),
            "entries_decode, W=4": lambda: self.decode(self.bodies),
            "sign_encode": lambda: kernels.sign_encode(self.grad, bounds, 4096),
            "sign_decode": lambda: kernels.sign_decode(*self.signs, bounds, 4096),
            "sign_add, W=4": lambda: kernels.sign_add(
                self.sums, *[[part] * WORLD_SIZE for part in self.signs], bounds, 4096, 0.25, True
            ),
            "tally, W=4": lambda: kernels.tally(self.positions),
            "vote_keys": self.vote_keys,
            "largest": lambda: kernels.largest(self.keys, k),
            "whole SBC step, W=4": self.sbc_step,
            PIPELINE: self.pytorch_step,
        }


def run(
    numel: int, density: float, rounds: int, rotated_bytes: int = ROTATED_BYTES
) -> list[CudaRow]:
    """Medians over interleaved rounds; the copy is among the candidates of every round."""
    sets = max(2, -(-rotated_bytes // (PER_ELEMENT * numel)))
    inputs = [Inputs(numel, density) for _ in range(sets)]
    source, target = (torch.empty(2 * numel, device=CUDA) for _ in range(2))
    work: dict[str, list[Callable[[], object]]] = {COPY: [lambda: target.copy_(source)] * sets}
    for each in inputs:
        for name, function in each.candidates().items():
            work.setdefault(name, []).append(function)
    counted = {name: _launches_and_waits(functions[0]) for name, functions in work.items()}
    replays = {name: [_captured(each) for each in functions] for name, functions in work.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    turns = itertools.cycle(range(sets))
    for each in inputs:
        each.refresh()
    label = f"{numel / 1e6:.1f} M, {density:.1%}"
    for _ in tqdm(range(rounds), desc=label, leave=False):
        for name in work:
            turn = next(turns)
            times[name].append(_microseconds(replays[name][turn]))
            inputs[turn].refresh()
    median = {name: statistics.median(each) for name, each in times.items()}
    return [
        CudaRow(
            numel,
            density,
            name,
            median[name],
            median[COPY] / median[name],
            median[PIPELINE] / median[name],
            *counted[name],
        )
        for name in work
    ]


def agrees_with_cpu(numel: int, density: float) -> bool:
    """Whether the whole SBC step gives the CPU's message, residual and mean, bit for bit."""
    inputs = Inputs(numel, density)
    twin = inputs.on_cpu()
    both = zip(inputs.sbc_step(), twin.sbc_step(), strict=True)
    return all(torch.equal(here.cpu(), there) for here, there in both)


def _captured(function: Callable[[], object]) -> Callable[[], None]:
    function()  # what is set up once must not be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _microseconds(replay: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)
    begin.record()
    replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def _launches_and_waits(function: Callable[[], object]) -> tuple[int, int]:
    """How many kernels, copies and fills it puts on the device; how often it waits for that."""
    function()
    work = device_work.work_of(function)
    return work.launches + work.to_device + work.from_device, work.waits
