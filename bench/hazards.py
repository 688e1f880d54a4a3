"""What may hang on a GPU, or go wrong in silence: one hazard a process, under a time limit.

    timeout 60 python bench/hazards.py beside_a_long_kernel
    timeout 60 python bench/hazards.py two_states
    timeout 60 python bench/hazards.py nccl_alone
    python bench/hazards.py two_states --pretend --numel 3000     # that it runs

Some kernels need all their blocks on the GPU at once, as do those of other states and whatever else
runs there. Each hazard averages gradients in such company, and must give the same bits as alone.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

import ddp_compress as dc
from gpu import CUDA, add_pretend, gpu

NUMEL = 50_000_000
STEPS = 5
A_SECOND = 2_000_000_000  # clock cycles, about
PRODUCTS = 1000  # about as many as can wait to be launched


class Rank:
    """One state and the gradients of its steps, in two messages."""

    def __init__(self, recipe: dc.Recipe, numel: int, seed: int) -> None:
        torch.manual_seed(seed)
        model = nn.Module()
        for name in ("a", "b"):
            model.register_parameter(name, nn.Parameter(torch.zeros(numel // 2, device=CUDA)))
        self.state = dc.CompressionState(model, recipe, flush_bytes=1)
        self._layouts = [self.state.layout([each]) for each in model.parameters()]
        self._fresh = [torch.randn(numel // 2).to(CUDA) for _ in self._layouts]

    def begin(self) -> Callable[[], list[Tensor]]:
        """Send the first half of a step; what comes back sends the other, and gives the means."""
        grads = [fresh.clone() for fresh in self._fresh]
        first = self.state.push(grads[0], self._layouts[0], last=False)

        def end() -> list[Tensor]:
            second = self.state.push(grads[1], self._layouts[1], last=True)
            return [first.wait(), second.wait()]

        return end

    def steps(self, between: Callable[[], object] = lambda: None) -> list[Tensor]:
        """The means of some steps; between the halves of each something else may be done."""
        means = list[Tensor]()
        for _ in range(STEPS):
            end = self.begin()
            between()
            means += end()
        return means


def alone(recipe: dc.Recipe, numel: int, seed: int) -> list[Tensor]:
    """The means of a state that nothing runs beside."""
    rank = Rank(recipe, numel, seed)
    means = rank.steps()
    torch.cuda.synchronize()
    rank.state.close()
    return means


def compare(found: list[Tensor], expected: list[Tensor]) -> None:
    """End the program where something differs."""
    torch.cuda.synchronize()
    if not all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True)):
        raise SystemExit("the averaged gradients are not those of a state alone on the GPU")


def asleep(numel: int) -> None:
    """One thread for seconds."""
    torch.cuda._sleep(3 * A_SECOND)


def products(numel: int) -> None:
    """Matrix products that fill the GPU for about as long."""
    size = math.isqrt(numel)
    factor = torch.randn(size, size, device=CUDA, dtype=torch.bfloat16)
    for _ in range(PRODUCTS):
        torch.matmul(factor, factor)


def beside_a_long_kernel(numel: int) -> str:
    """Select while other kernels are on the GPU, of few threads or of as many as there is room."""
    recipe = dc.recipes.topk(0.001, "tensor")
    expected = alone(recipe, numel, seed=0)
    stream, told = torch.cuda.Stream(), []
    for busy in (asleep, products):
        rank = Rank(recipe, numel, seed=0)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            busy(numel)
            over = torch.cuda.Event()
            over.record()
        begin = time.perf_counter()
        means = rank.steps()
        torch.cuda.current_stream().synchronize()
        took, waited = time.perf_counter() - begin, over.query()
        compare(means, expected)
        rank.state.close()
        end = "after its end" if waited else "meanwhile"
        told.append(f"{busy.__name__}: {took / STEPS * 1e3:.1f} ms a step, done {end}")
    return "; ".join(told)


def two_states(numel: int) -> str:
    """Two states whose threads run at the same time, and share a stream."""
    recipe = dc.recipes.sbc(0.001)
    expected = [alone(recipe, numel // 2, seed) for seed in (0, 1)]
    ranks = [Rank(recipe, numel // 2, seed) for seed in (0, 1)]
    found: list[list[Tensor]] = [[], []]
    begin = time.perf_counter()
    for _ in range(STEPS):
        ends = [rank.begin() for rank in ranks]
        for means, end in zip(found, ends, strict=True):
            means += end()
    torch.cuda.synchronize()
    took = time.perf_counter() - begin
    for means, others in zip(found, expected, strict=True):
        compare(means, others)
    for rank in ranks:
        rank.state.close()
    return f"{took / STEPS * 1e3:.1f} ms a step of both"


def nccl_alone(numel: int) -> str:
    """A user's all-reduce in the middle of every step, in a group of NCCL alone.

    It is a kernel there, beside which gradients go by a group of Gloo that the state has made.
    """
    recipe = dc.recipes.sbc(0.001)
    expected = alone(recipe, numel, seed=0)
    # What one rank has NCCL averages by a kernel, but sums by none. A pretence has no GPU to count.
    over_nccl = "nccl", dist.ReduceOp.AVG
    backend, op = over_nccl if torch.cuda.device_count() else ("gloo", dist.ReduceOp.SUM)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    rank, given = Rank(recipe, numel, seed=0), torch.randn(numel).to(CUDA)
    theirs = given.clone()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    found = rank.steps(between=lambda: dist.all_reduce(theirs, op))
    torch.cuda.synchronize()
    took = time.perf_counter() - begin
    compare([*found, theirs], [*expected, given])
    rank.state.close()
    dist.destroy_process_group()
    return f"{took / STEPS * 1e3:.1f} ms a step, a user's all-reduce over {backend} in it"


HAZARDS = {each.__name__: each for each in (beside_a_long_kernel, two_states, nccl_alone)}


def main() -> None:
    """Meet the hazards that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hazards", nargs="+", choices=HAZARDS)
    parser.add_argument("--numel", type=int, default=NUMEL, help="50 M by default")
    add_pretend(parser)
    options = parser.parse_args()
    with gpu(options.pretend):
        for name in options.hazards:
            print(f"{name}: ", end="", flush=True)  # one may hang
            print(f"the same bits; {HAZARDS[name](options.numel)}")


if __name__ == "__main__":
    main()
