"""Every kernel beside its floor, beside torch.topk and beside plain PyTorch, in one run.

    python bench/kernels.py --numel 11200000 33500000 --density 0.001 0.01
    python bench/kernels.py --device cuda

Times on a busy machine say little, ratios within one run say a lot: every round runs all
candidates one after another, and the medians of the rounds are compared. As in training, each
finds a gradient just written and memory that was written lately; what a state keeps lies in large
pages, as it does there (see `ddp_compress.ops.large_pages`). The floors are ``r.add_(g)`` for
what reads a gradient and its residual, and ``out.zero_()`` beside it for what also writes a result;
``out.copy_(x)`` for what turns one tensor into another. One thread. On a GPU the floor is a device
copy, see kernels_cuda.py.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import kernels_cuda
from ddp_compress import ops
from ddp_compress.ops import reference
from ddp_compress.ops.large_pages import in_large_pages
from gpu import add_pretend, gpu
from kernels_cuda import NO_SALTS, WORLD_SIZE, CudaRow
from output import add_json, show, write_json

NUMELS = {"cpu": [11_200_000, 33_500_000], "cuda": [6_500_000, 100_000_000]}


@dataclass(frozen=True)
class Row:
    """One measured candidate: its median and how it compares with its floor."""

    numel: int
    density: float
    name: str
    milliseconds: float
    floor: str
    ratio: float


class Bench:
    """The tensors of one size and density, and the candidates that run on them."""

    def __init__(self, numel: int, density: float) -> None:
        self.numel, self.density, self.k = numel, density, round(numel * density)
        self.bounds = torch.tensor([0, numel])
        self.groups = torch.tensor([0])
        self.ks = torch.tensor([self.k])
        self.fresh = [torch.randn(numel) ** 3 for _ in range(2)]
        self.grad, self.plain = (each.clone() for each in self.fresh)
        # As a state keeps it. The floors' tensors are as a user makes them.
        self.residual = in_large_pages(torch.empty(numel)).copy_(self.fresh[1])
        self.next_residual = in_large_pages(torch.empty(numel)).zero_()
        self.momentum = in_large_pages(torch.empty(numel)).normal_()
        self.next_momentum = in_large_pages(torch.empty(numel)).zero_()
        self.zeros = torch.zeros(numel)
        self.ones = torch.ones(numel)
        self.out = torch.zeros(numel)
        self.positions = [self._random_positions() for _ in range(WORLD_SIZE)]
        self.messages = [ops.elias_fano_encode(p, numel, self.k) for p in self.positions]
        mean = torch.tensor([2.0]).view(torch.uint8)
        self.bodies = [torch.cat([message, mean]) for message in self.messages]
        self.ends = self.bounds[1:].int()
        self.golomb = ops.golomb_encode(self.positions[0], self.bounds)
        self.symbols = torch.rand(self.k).pow(2).mul(17).byte()
        self.rans = ops.rans_encode(self.symbols, 17)
        self.edges = torch.linspace(0.2, 2, 7, dtype=torch.float64)[None]
        self.table = torch.randn(1, 17)
        self.signs = ops.sign_encode(self.grad, self.bounds, 4096)
        whole = numel // 9  # a convolution of 3 x 3, of kernels that have something in common
        self.conv = torch.randn(whole, 9).add_(torch.randn(whole, 1)).flatten()
        self.conv_tables = torch.tensor([0, 9 * whole]), torch.tensor([9]), torch.tensor([1])
        self.pattern = torch.ones(1, 9, dtype=torch.float64)
        ranked = self.rank_kernels()
        self.of_kernels = ranked[0], ranked[2], ranked[3], self.conv[ranked[3].long()]
        self.of_conv = self.join_kernels()
        self.salts = reference.salts(["weight"], seed=0, step=0)
        self.rotated = {transform: self.rotate(transform) for transform in ("hadamard", "kashin")}
        self.values = [torch.randn(self.k) for _ in range(WORLD_SIZE)]
        self.tally = ops.tally(self.positions)
        self.keys = self.vote_keys(random=False)

    def _random_positions(self) -> Tensor:
        chosen = torch.rand(self.numel).topk(self.k).indices
        return chosen.sort().values.int()

    def refresh(self) -> None:
        """What a step finds: a gradient just written, and memory that the last step has written."""
        self.next_residual.zero_()
        self.residual.copy_(self.fresh[1])
        self.plain.copy_(self.fresh[1])
        self.grad.copy_(self.fresh[0])

    def select(
        self,
        momentum: bool = False,
        heavier: bool = False,
        sums: bool = False,
        salts: Tensor = NO_SALTS,
        topk: Callable[..., tuple[Tensor, ...]] = ops.topk,
    ) -> tuple[Tensor, ...]:
        return topk(
            [self.grad],
            [self.residual],
            [self.momentum] if momentum else [],
            0.9,
            self.bounds,
            self.groups,
            self.ks,
            salts,
            heavier,
            [self.next_residual] if sums else [],
            [self.next_momentum] if sums and momentum else [],
        )

    def select_equals(self) -> None:
        """Every entry is a tie that its hash has to break."""
        chunk, memory = [self.ones], [self.zeros]
        tables = self.bounds, self.groups, self.ks, self.salts
        ops.topk(chunk, memory, [], 0.0, *tables, False, [], [])

    def vote_keys(self, random: bool) -> Tensor:
        return ops.vote_keys(*self.tally, self.bounds, self.salts, WORLD_SIZE, random)

    def add_signs(self, ranks: int) -> None:
        bits, scales = ([part] * ranks for part in self.signs)
        ops.sign_add(self.out, bits, scales, self.bounds, 4096, 1 / ranks, True)

    def tables(self, transform: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What both sides of a rotated message know."""
        free = torch.arange(256) % 31 if transform == "kashin" else NO_SALTS
        return self.bounds.diff(), self.salts, free, torch.empty(0, dtype=torch.bool)

    def rotate(self, transform: str) -> Tensor:
        counts, signs, free, sent = self.tables(transform)
        iterations = 2 if transform == "kashin" else 1
        tables = counts, signs, self.salts, free, sent
        return ops.rotated_encode(self.grad, *tables, unbiased=True, iterations=iterations, bits=4)

    def add_rotated(self, transform: str) -> None:
        every, tables = [self.rotated[transform]] * WORLD_SIZE, self.tables(transform)
        ops.rotated_add(self.out, 0, every, *tables, 4, 1.0, 1 / WORLD_SIZE, True)

    def turn_back(self, transform: str) -> Tensor:
        return ops.rotated_decode(self.rotated[transform], *self.tables(transform), bits=4)

    def largest_kernels(self) -> Tensor:
        return ops.largest_kernels([self.conv], *self.conv_tables, self.groups, self.ks, 9, 2048)

    def rank_kernels(self) -> tuple[Tensor, ...]:
        given = [self.conv], *self.conv_tables, self.groups, self.ks
        prices = torch.tensor([[7.0, 7.0, 14.0]]).double(), torch.tensor([12.0]).double()
        return ops.rank_kernels(*given, [self.pattern], *prices)

    def join_kernels(self) -> tuple[Tensor, Tensor]:
        kernels, of_kernels, singles, of_singles = self.of_kernels
        lists = [kernels], [of_kernels], singles, of_singles
        return ops.join_kernels(*lists, *self.conv_tables)

    def torch_topk(self) -> None:
        (self.residual + self.grad).abs().topk(self.k)

    def sbc_step(self) -> None:
        """Select and leave the sums, encode; then decode four ranks' messages, write the mean."""
        indices, *_, means = self.select(heavier=True, sums=True)
        message = ops.elias_fano_encode(indices, self.numel, self.k)
        own = torch.cat([message, means.view(torch.uint8)])
        positions, worth, _ = self.decode([own, *self.bodies[1:]])
        self.residual, self.next_residual = self.next_residual, self.residual
        count = len(indices)
        sent = [positions[0][:count]], [worth[0][:count]]
        ops.scatter_add(self.residual, 0, *sent, -1.0)
        lists = [*sent[0], *positions[1:]], [*sent[1], *worth[1:]]
        ops.scatter_add(self.grad, 0, *lists, 1 / WORLD_SIZE, afresh=True)

    def decode(self, bodies: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The lists of all ranks at once."""
        return ops.entries_decode(bodies, self.ends, self.numel, self.k, None)

    def scatter_add(self, afresh: bool) -> None:
        ops.scatter_add(self.out, 0, self.positions, self.values, 1 / WORLD_SIZE, afresh)

    def accumulate(self) -> None:
        """Into the memory that the step before has left free."""
        ops.accumulate(self.residual, self.grad, None, 0.0, self.next_residual, None)
        self.residual, self.next_residual = self.next_residual, self.residual

    def candidates(self) -> dict[str, tuple[str, Callable[[], object]]]:
        """By name: the floor it is compared with, and what to run."""
        return {
            "r.add_(g)": ("add", lambda: self.plain.add_(self.grad)),
            "r.add_(g), r in large pages": ("add", lambda: self.residual.add_(self.grad)),
            "out.zero_()": ("add", lambda: self.out.zero_()),
            "select top-k": ("add", self.select),
            "select top-k, momentum": ("add", lambda: self.select(momentum=True)),
            "the same, sums and momentum left": (
                "add",
                lambda: self.select(momentum=True, sums=True),
            ),
            "select top-k, hash ties": ("add", lambda: self.select(salts=self.salts)),
            "select top-k, all equal": ("add", self.select_equals),
            "select heavier side": ("add", lambda: self.select(heavier=True)),
            "select heavier side, sums left": (
                "add",
                lambda: self.select(heavier=True, sums=True),
            ),
            "accumulate": ("add", self.accumulate),
            "torch.topk(|r+g|)": ("add", self.torch_topk),
            "select, plain PyTorch": ("add", lambda: self.select(topk=reference.topk)),
            "scatter_add, W=4": ("zero", lambda: self.scatter_add(afresh=False)),
            "scatter_add afresh, W=4": ("zero", lambda: self.scatter_add(afresh=True)),
            "elias_fano_encode": (
                "add",
                lambda: ops.elias_fano_encode(self.positions[0], self.numel, self.k),
            ),
            "elias_fano_decode": (
                "add",
                lambda: ops.elias_fano_decode(self.messages[0], self.numel, self.k),
            ),
            "entries_decode, W=4": ("add", lambda: self.decode(self.bodies)),
            "golomb_encode": ("add", lambda: ops.golomb_encode(self.positions[0], self.bounds)),
            "golomb_decode": (
                "add",
                lambda: ops.golomb_decode(self.golomb, self.bounds, self.k),
            ),
            "rans_encode": ("add", lambda: ops.rans_encode(self.symbols, 17)),
            "rans_decode": ("add", lambda: ops.rans_decode([self.rans], self.k, 17)),
            "rans_decode, W=4": (
                "add",
                lambda: ops.rans_decode([self.rans] * WORLD_SIZE, self.k, 17),
            ),
            "cell_numbers": (
                "add",
                lambda: ops.cell_numbers(self.values[0], self.ks, self.edges),
            ),
            "cell_means": (
                "add",
                lambda: ops.cell_means(self.values[0], self.symbols, self.ks, 17),
            ),
            "cell_values": ("add", lambda: ops.cell_values(self.table, self.symbols, self.ks)),
            "sign_encode": ("add", lambda: ops.sign_encode(self.grad, self.bounds, 4096)),
            "sign_decode": (
                "zero",
                lambda: ops.sign_decode(*self.signs, self.bounds, 4096),
            ),
            "sign_add, mean of W=4 afresh": ("zero", lambda: self.add_signs(WORLD_SIZE)),
            "out.copy_(x)": ("copy", lambda: self.out.copy_(self.grad)),
            "rotated_encode, 4 bits": ("copy", lambda: self.rotate("hadamard")),
            "rotated_encode, 4 bits, Kashin": ("copy", lambda: self.rotate("kashin")),
            "rotated_decode, 4 bits": ("copy", lambda: self.turn_back("hadamard")),
            "rotated_add, mean of W=4": ("copy", lambda: self.add_rotated("hadamard")),
            "rotated_decode, 4 bits, Kashin": ("copy", lambda: self.turn_back("kashin")),
            "largest_kernels": ("add", self.largest_kernels),
            "rank_kernels": ("add", self.rank_kernels),
            "split_kernels": ("add", lambda: ops.split_kernels(*self.of_conv, *self.conv_tables)),
            "join_kernels": ("add", self.join_kernels),
            "segment_means": (
                "add",
                lambda: ops.segment_means(self.values[0], self.ks),
            ),
            "tally, W=4": ("add", lambda: ops.tally(self.positions)),
            "vote_keys": ("add", lambda: self.vote_keys(random=False)),
            "vote_keys, random": ("add", lambda: self.vote_keys(random=True)),
            "largest": ("add", lambda: ops.largest(self.keys, self.k)),
            "whole SBC step, W=4": ("add + zero", self.sbc_step),
        }

    def run(self, rounds: int) -> list[Row]:
        """Medians over interleaved rounds."""
        times: dict[str, list[float]] = {name: [] for name in self.candidates()}
        label = f"{self.numel / 1e6:.1f} M, {self.density:.1%}"
        for _ in tqdm(range(rounds), desc=label, leave=False):
            for name, (_, function) in self.candidates().items():
                self.refresh()
                begin = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - begin)
        median = {name: statistics.median(each) * 1e3 for name, each in times.items()}
        floors = {"add": median["r.add_(g)"], "zero": median["out.zero_()"]}
        floors["add + zero"] = floors["add"] + floors["zero"]
        floors["copy"] = median["out.copy_(x)"]
        return [
            Row(
                self.numel,
                self.density,
                name,
                median[name],
                floor,
                median[name] / floors[floor],
            )
            for name, (floor, _) in self.candidates().items()
        ]


def table(rows: list[Row]) -> Table:
    """The rows as a table."""
    result = Table(title="Kernels, one thread, medians")
    for column in ("N", "density", "what", "ms", "floor", "x floor"):
        result.add_column(column, justify="left" if column in ("what", "floor") else "right")
    for row in rows:
        result.add_row(
            f"{row.numel / 1e6:.1f} M",
            f"{row.density:.1%}",
            row.name,
            f"{row.milliseconds:.3f}",
            row.floor,
            f"{row.ratio:.2f}",
        )
    return result


def cuda_table(rows: list[CudaRow]) -> Table:
    """The rows of a GPU as a table."""
    result = Table(title="CUDA kernels, medians of graph replays")
    columns = ("N", "density", "what", "us", "of the copy's bandwidth", "x torch.topk")
    for column in (*columns, "launches", "host waits"):
        result.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        result.add_row(
            f"{row.numel / 1e6:.1f} M",
            f"{row.density:.1%}",
            row.name,
            f"{row.microseconds:.1f}",
            f"{row.of_copy:.0%}",
            f"{row.times_faster:.2f}",
            str(row.launches),
            str(row.waits),
        )
    return result


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--numel", type=int, nargs="+", help="default: 11.2 and 33.5 M, on a GPU 6.5 and 100 M"
    )
    parser.add_argument("--density", type=float, nargs="+", default=[0.001, 0.01])
    parser.add_argument("--rounds", type=int, default=15, help="15 by default")
    add_pretend(parser)
    add_json(parser)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    cases = [*itertools.product(arguments.numel or NUMELS[arguments.device], arguments.density)]
    if arguments.device == "cuda":
        with gpu(arguments.pretend):
            rotated_bytes = 0 if arguments.pretend else kernels_cuda.ROTATED_BYTES  # no cache
            found = [
                row
                for case in cases
                for row in kernels_cuda.run(*case, arguments.rounds, rotated_bytes)
            ]
            tell_of_cuda(found, cases)
        figures = [asdict(row) for row in found]
    else:
        torch.set_num_threads(1)
        rows = [row for case in cases for row in Bench(*case).run(arguments.rounds)]
        show(table(rows))
        figures = [asdict(row) for row in rows]
    write_json(arguments.json, figures)


def tell_of_cuda(rows: list[CudaRow], cases: list[tuple[int, float]]) -> None:
    """Show the figures of a GPU, and whether its SBC step does what the CPU's does."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    show(cuda_table(rows))
    for numel, density in cases:
        same = kernels_cuda.agrees_with_cpu(numel, density)
        what = f"whole SBC step, {numel / 1e6:.1f} M, {density:.1%}"
        print(f"{what}: the CPU's bytes on the wire and output bits: {same}")


if __name__ == "__main__":
    main()
