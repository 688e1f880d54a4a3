"""Bytes that a rank sends and receives in a step, against the number of ranks.

    python bench/scaling.py

Every rank is a process of its own on this machine and averages gradients of ``--numel`` elements,
heavy-tailed, half of them signal that all ranks share, half noise of their own. Collectives are
counted as `state.stats` counts them; after two steps sizes are steady. Traffic is in *words for
each selected entry*: bytes / 4 K, where a dense ring all-reduce moves 2 (W - 1) / W words for
*every* element.

* sent, received: mean over ranks; most: what the rank that sends most sends.
* over (W - 1) / W: sent, divided by the share of anything that has to leave a rank at all.
* vote: what a majority vote sends beside the values, whose ring all-reduce is 2 (W - 1) / W words.
* payload, in bits an element: positions, values, and the rest: headers, counts and answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

import ddp_compress as dc
from output import add_json, show, write_json
from ranks import on_ranks

WARM_UP = 2
recipes = dc.recipes
METHODS: dict[str, Callable[[float], dc.Recipe]] = {
    "vote, sharded": lambda d: recipes.majority_vote(d, ballot_box="sharded"),
    "vote, gather": lambda d: recipes.majority_vote(d, ballot_box="gather"),
    "topk, all_gather": lambda d: recipes.topk(d),
    "topk, sharded": lambda d: recipes.topk(d, exchange="sharded"),
    "topk, union": lambda d: recipes.topk(d, exchange="union"),
    "hgc": lambda d: recipes.hgc(d),
}
Counts = dict[str, float]  # of one rank, per step


@dataclass(frozen=True)
class Row:
    """A method on so many ranks. Traffic in words for each selected entry, payload in bits for
    each element."""

    method: str
    ranks: int
    sent: float
    most: float
    received: float
    vote: float | None
    positions: float
    values: float
    rest: float
    collectives: float

    @property
    def scaled(self) -> float:
        """Sent, over (W - 1) / W."""
        return self.sent * self.ranks / (self.ranks - 1)


def gradient(numel: int, step: int) -> Tensor:
    """A gradient [numel] of this rank."""
    common = torch.Generator().manual_seed(step)
    own = torch.Generator().manual_seed(1000 * (dist.get_rank() + 1) + step)
    signal = torch.randn(numel, generator=common)
    return signal.add_(torch.randn(numel, generator=own)).pow_(3)


def measure(method: str, numel: int, density: float, steps: int) -> Counts:
    """What a method costs this rank in a step."""
    model = nn.Module()
    model.register_parameter("all", nn.Parameter(torch.empty(numel)))
    state = dc.CompressionState(model, METHODS[method](density))
    before: Counts = {}
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            before = state.stats.state_dict()
        state.reduce({"all": gradient(numel, step)})
    after = state.stats.state_dict()
    return {name: (after[name] - before[name]) / steps for name in after}


def rows(ranks: Sequence[int], numel: int, density: float, steps: int) -> list[Row]:
    """Every method on every number of ranks."""
    found = []
    pairs = tqdm([(method, world) for world in ranks for method in METHODS], unit="run")
    for method, world in pairs:
        pairs.set_description(f"{method}, W = {world}")
        counts = on_ranks(world, measure, method, numel, density, steps)
        found.append(row(method, counts, numel, density))
    return found


def row(method: str, counts: list[Counts], numel: int, density: float) -> Row:
    world, word = len(counts), 4 * max(1, round(density * numel))

    def mean(name: str) -> float:
        return sum(rank[name] for rank in counts) / world

    sent = mean("sent_bytes") / word
    positions, values = mean("position_bits"), mean("value_bits")
    return Row(
        method,
        world,
        sent,
        max(rank["sent_bytes"] for rank in counts) / word,
        mean("received_bytes") / word,
        sent - 2 * (world - 1) / world if method.startswith("vote") else None,
        positions / numel,
        values / numel,
        (mean("payload_bits") - positions - values) / numel,
        mean("collectives"),
    )


def render(found: list[Row], numel: int, density: float) -> Table:
    table = Table(title=f"Words for each of {density:.1%} of {numel:,}; payload in bits an element")
    table.add_column("")
    for column in ("W", "sent", "over\n(W-1)/W", "most", "received", "vote"):
        table.add_column(column, justify="right")
    for column in ("positions", "values", "rest", "collec-\ntives"):
        table.add_column(column, justify="right")
    for method in METHODS:
        for each in (each for each in found if each.method == method):
            table.add_row(
                method,
                str(each.ranks),
                *(f"{n:.3f}" for n in (each.sent, each.scaled, each.most, each.received)),
                "" if each.vote is None else f"{each.vote:.3f}",
                *(f"{n:.5f}" for n in (each.positions, each.values, each.rest)),
                f"{each.collectives:.1f}",
            )
        table.add_section()
    return table


def flatness(found: list[Row]) -> str:
    """How far the sharded vote is from growing with W."""
    scaled = [each.scaled for each in found if each.method == "vote, sharded"]
    return (
        f"Sharded vote over (W-1)/W: {min(scaled):.3f} to {max(scaled):.3f} words, "
        f"{max(scaled) / min(scaled) - 1:.1%} apart"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--numel", type=int, default=10**7)
    add("--density", type=float, default=0.01)
    add("--ranks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    add("--steps", type=int, default=4, help="measured, after the warm-up")
    add_json(parser)
    options = parser.parse_args()
    found = rows(options.ranks, options.numel, options.density, options.steps)
    show(render(found, options.numel, options.density))
    print(flatness(found))
    write_json(options.json, [asdict(each) for each in found])


if __name__ == "__main__":
    main()
