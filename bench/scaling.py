"""Bytes that a rank sends and receives in a step, against the number of ranks.

    python bench/scaling.py
    python bench/scaling.py --nodes 2 8 32 128 1024     # of eight ranks; see `scaling_nodes.py`

Every rank is a process of its own on this machine and averages gradients of ``--numel`` elements,
heavy-tailed, half of them signal that all ranks share, half noise of their own. Collectives are
counted as `state.stats` counts them; after two steps sizes are steady. Traffic is in *words for
each selected entry*: bytes / 4 K, where a dense ring all-reduce moves 2 (W - 1) / W words for
*every* element.

* sent, received: mean over ranks; most: what the rank that sends most sends.
* over (W - 1) / W: sent, divided by the share of anything that has to leave a rank at all.
* vote: what a majority vote sends beside the values, whose ring all-reduce is 2 (W - 1) / W words.
* payload, in bits an element: positions, values, and the rest: headers, counts and answers.

With ``--nodes`` recipes that exchange slices between nodes stand beside those that exchange whole
gradients of all ranks, and beside a dense all-reduce of two levels and one ring. Groups of more
ranks than processes are of echoes (see `ddp_compress.advise.echoes`): the real code, on messages
that few ranks have written. Where all-gathers are too large for that they are computed from their
messages.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from tqdm import tqdm

import ddp_compress as dc
import scaling_nodes
from output import add_json, show, write_json
from ranks import on_ranks
from scaling_rank import Counts, measure

recipes = dc.recipes
METHODS: dict[str, Callable[[float], dc.Recipe]] = {
    "vote, sharded": lambda d: recipes.majority_vote(d, ballot_box="sharded"),
    "vote, gather": lambda d: recipes.majority_vote(d, ballot_box="gather"),
    "topk, all_gather": lambda d: recipes.topk(d),
    "topk, sharded": lambda d: recipes.topk(d, exchange="sharded"),
    "topk, union": lambda d: recipes.topk(d, exchange="union"),
    "hgc": lambda d: recipes.hgc(d),
}


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


def rows(ranks: Sequence[int], numel: int, density: float, steps: int) -> list[Row]:
    """Every method on every number of ranks."""
    found = []
    pairs = tqdm([(method, world) for world in ranks for method in METHODS], unit="run")
    for method, world in pairs:
        pairs.set_description(f"{method}, W = {world}")
        counts = on_ranks(world, measure, METHODS[method](density), numel, steps)
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
    add("--nodes", type=int, nargs="+", help="in place of --ranks; powers of two")
    add("--ranks-per-node", type=int, default=8)
    add("--steps", type=int, default=4, help="measured, after the warm-up")
    add_json(parser)
    options = parser.parse_args()
    try:
        found = on_nodes(options) if options.nodes else on_single_ranks(options)
    except ValueError as error:
        parser.error(str(error))
    write_json(options.json, found)


def on_single_ranks(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = rows(options.ranks, options.numel, options.density, options.steps)
    show(render(found, options.numel, options.density))
    print(flatness(found))
    return [asdict(each) for each in found]


def on_nodes(options: argparse.Namespace) -> list[dict[str, Any]]:
    local = options.ranks_per_node
    told = options.nodes, options.numel, options.density, local, options.steps
    setting = scaling_nodes.Setting.of(*told)
    found = scaling_nodes.rows(options.nodes, setting)
    show(*scaling_nodes.render(found, options.nodes, setting))
    print(*scaling_nodes.crossings(found), sep="\n")
    return [asdict(each) for each in found]


if __name__ == "__main__":
    main()
