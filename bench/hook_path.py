"""What the hook's path asks of a GPU and of the host, from the first push to the commit.

    python bench/hook_path.py --json hook_path.json --trace trace.json.gz
    python bench/hook_path.py --pretend --numel 2000    # counts alone, on any machine

One process is a rank of W: its collective hands back W frames, each of them its own, so nobody is
waited for but the device. Every step has some messages of one bucket each. For each message, on
average:

* waits: how often the host waits for the device; launches: kernels, fills and copies within the
  device; to, from: copies to and from it, pageable those of pageable memory. On a GPU the profiler
  counts them (see device_work.py), elsewhere the pretence (see pretended_gpu.py).
* calls: of PyTorch's operators, but for views and reads of one number. Told by the pretence alone:
  they are the same on a GPU.
* wall, CPU: time of a step until its gradients are averaged, on all threads; GPU: in which the
  device had something to do.
* beside: wall, while matrix products run on another stream; slower: by how much these take longer.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from rich.table import Table
from torch import Tensor, nn

import ddp_compress as dc
import device_work
from gpu import CUDA, add_pretend, gpu
from output import add_json, show, write_json

RECIPES = {
    "sbc": dc.recipes.sbc(0.001),
    "topk": dc.recipes.topk(0.001, "tensor"),
    "dgc": dc.recipes.dgc(0.001),
}
WARM_UP = 4  # steps: sizes of frames are steady then, and kernels loaded


class Done:
    """A collective that is over."""

    def wait(self) -> None:
        """Nothing is under way."""


def echo(output: Tensor, given: Tensor, *_: object, **__: object) -> Done:
    """An all-to-all among ranks that all send what this one does."""
    output.copy_(given)
    return Done()


@contextmanager
def one_of(world_size: int) -> Iterator[None]:
    """In here this process is a rank of W, all of them like it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with (
            mock.patch.object(dist, "get_world_size", return_value=world_size),
            mock.patch.object(dist, "all_to_all_single", echo),
        ):
            yield
    finally:
        dist.destroy_process_group()


class HookPath:
    """The steps of one rank: some messages each, of a bucket's size.

    Args:
        recipe: what the messages are made by.
        messages: in a step.
        numel: elements of each.
        parameters: of each, all of one size.
    """

    def __init__(self, recipe: dc.Recipe, messages: int, numel: int, parameters: int) -> None:
        self.messages = messages
        model = nn.Module()
        for number in range(messages * parameters):
            zeros = torch.zeros(numel // parameters, device=CUDA)
            model.register_parameter(f"p{number}", nn.Parameter(zeros))
        every = list(model.parameters())
        buckets = [every[i : i + parameters] for i in range(0, len(every), parameters)]
        self.state = dc.CompressionState(model, recipe, flush_bytes=1)
        self._layouts = [self.state.layout(bucket) for bucket in buckets]
        self._fresh = [torch.randn(layout.numel).to(CUDA) for layout in self._layouts]
        self._grads = [torch.empty_like(fresh) for fresh in self._fresh]
        for _ in range(WARM_UP):
            self.refresh()
            self.step()

    def refresh(self) -> None:
        """As backward does: the last step's results give way to gradients."""
        for grad, fresh in zip(self._grads, self._fresh, strict=True):
            grad.copy_(fresh)
        torch.cuda.current_stream().synchronize()

    def step(self) -> None:
        """Push all messages; the current stream goes on with the results."""
        last = len(self._grads) - 1
        futures = [
            self.state.push(grad, layout, last=number == last)
            for number, (grad, layout) in enumerate(zip(self._grads, self._layouts, strict=True))
        ]
        for future in futures:
            future.wait()


@dataclass(frozen=True)
class Row:
    """What a message costs. Times are in microseconds; None where nothing is timed."""

    recipe: str
    world_size: int
    messages: int
    waits: float
    launches: float
    to_device: float
    from_device: float
    pageable: float
    calls: float | None = None
    wall: float | None = None
    cpu: float | None = None
    busy: float | None = None  # of the device
    beside: float | None = None
    slower: float | None = None


def counts(path: HookPath, trace: Path | None = None) -> dict[str, Any]:
    """What a message asks of the device and of the host."""
    path.refresh()
    found = asdict(device_work.work_of(path.step, trace))
    return {name: None if count is None else count / path.messages for name, count in found.items()}


def times(path: HookPath, rounds: int) -> dict[str, float]:
    """What a message takes, medians over steps."""
    walls, cpus = zip(*(timed(path) for _ in range(rounds)), strict=True)
    return {
        "wall": statistics.median(walls) / path.messages,
        "cpu": statistics.median(cpus) / path.messages,
    }


def timed(path: HookPath) -> tuple[float, float]:
    """Microseconds of a step: by the clock, and of all threads."""
    path.refresh()
    clock, threads = time.perf_counter(), time.process_time()
    path.step()
    torch.cuda.current_stream().synchronize()
    return (time.perf_counter() - clock) * 1e6, (time.process_time() - threads) * 1e6


class Products:
    """Matrix products on a stream of their own, which fill a GPU."""

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        self._stream = torch.cuda.Stream()
        self._factor = torch.randn(size, size, device=CUDA, dtype=torch.bfloat16)
        self._result = torch.empty_like(self._factor)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def start(self) -> None:
        """Put them on their stream."""
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            self._begin.record()
            for _ in range(self._count):
                torch.matmul(self._factor, self._factor, out=self._result)
            self._end.record()

    @property
    def running(self) -> bool:
        """Whether some are still to be done."""
        return not self._end.query()

    def took(self) -> float:
        """Microseconds for all of them."""
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) * 1e3


def beside(path: HookPath, products: Products) -> dict[str, float]:
    """What a message takes beside matrix products, and how much longer these take."""
    products.start()
    alone = products.took()
    products.start()
    walls = [timed(path)[0]]
    while products.running:
        walls.append(timed(path)[0])
    return {
        "beside": statistics.median(walls) / path.messages,
        "slower": products.took() / alone - 1,
    }


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Every case, one after another."""
    products = Products(2, 8) if options.pretend else Products(200, 8192)
    trace = options.trace
    for world_size in options.world_size:
        with one_of(world_size):
            for name, messages in itertools.product(RECIPES, options.messages):
                path = HookPath(RECIPES[name], messages, options.numel, options.parameters)
                found = counts(path, trace)
                trace = None  # of the first alone
                taken = times(path, options.rounds) | beside(path, products)
                if not options.pretend:  # where time says nothing
                    found |= taken
                path.state.close()
                yield Row(name, world_size, messages, **found)


def table(found: list[Row], title: str) -> Table:
    """The rows as a table."""
    result = Table(title=title)
    for column in ("recipe", "W", "messages"):
        result.add_column(column, justify="right" if column in ("W", "messages") else "left")
    for column in ("waits", "launches", "to", "from", "pageable", "calls"):
        result.add_column(column, justify="right")
    for column in ("wall us", "CPU us", "GPU us", "beside us", "slower"):
        result.add_column(column, justify="right")
    for row in found:
        counted = (row.waits, row.launches, row.to_device, row.from_device, row.pageable, row.calls)
        taken = (row.wall, row.cpu, row.busy, row.beside)
        result.add_row(
            row.recipe,
            str(row.world_size),
            str(row.messages),
            *("" if each is None else f"{each:.1f}".removesuffix(".0") for each in counted),
            *("" if each is None else f"{each:.0f}" for each in taken),
            "" if row.slower is None else f"{row.slower:.1%}",
        )
    return result


def in_words(row: Row) -> str:
    """A row in a line."""
    line = (
        f"{row.recipe}, W = {row.world_size}, {row.messages} a step: {row.waits:.1f} waits a "
        f"message, {row.launches:.1f} launches, {row.to_device:.1f} copies to the device and "
        f"{row.from_device:.1f} from it"
    )
    if row.calls is not None:
        line += f", {row.calls:.0f} calls"
    if row.wall is not None:
        line += f", {row.wall:.0f} us; the GPU is busy for {row.busy:.0f} us"
    return line


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--numel", type=int, default=6_500_000, help="of a message; 6.5 M are 25 MB of fp32")
    add("--parameters", type=int, default=20, help="of a message")
    add("--world-size", type=int, nargs="+", default=[4, 16])
    add("--messages", type=int, nargs="+", default=[1, 4, 16], help="in a step")
    add("--rounds", type=int, default=20, help="steps that are timed")
    add("--trace", type=Path, metavar="FILE.json.gz", help="of a step of the first case")
    add_pretend(parser)
    add_json(parser)
    options = parser.parse_args()
    with gpu(options.pretend):
        torch.manual_seed(0)
        found = list(rows(options))
        show(table(found, f"{torch.cuda.get_device_name()}, torch {torch.__version__}, a message"))
    print(in_words(found[0]))
    write_json(options.json, [asdict(row) for row in found])


if __name__ == "__main__":
    main()
