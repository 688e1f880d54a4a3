"""Bytes that nodes of several ranks send in a step, against the number of nodes.

With two levels a rank averages its slice of a gradient inside its node, and exchanges it with the
ranks of its place alone. So L groups of as many ranks as there are nodes never meet: one of them is
run, over N / L elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from tqdm import tqdm

import ddp_compress as dc
from ranks import on_ranks
from scaling_rank import measure

PROCESSES = 4
ROOM = 2**27  # bytes of messages that a process takes in
MARKS = {"processes": "", "echoes": "*", "computed": "°"}
RECIPES: dict[str, Callable[[float], dc.Recipe]] = {
    "topk": lambda d: dc.recipes.topk(d),
    "topk, sharded": lambda d: dc.recipes.topk(d, exchange="sharded"),
    "sbc": lambda d: dc.recipes.sbc(d),
    "sbc, sharded": lambda d: dc.recipes.sbc(d, exchange="sharded"),
}


@dataclass(frozen=True)
class Row:
    """What a method sends in a step. Bytes.

    Args:
        method: a recipe or a dense all-reduce, with "within=node" where it has two levels.
        nodes: how many there are.
        how: of `MARKS`.
        rank: what a rank sends, to those that it exchanges compressed gradients with.
        node: what a node's ranks send to other nodes.
        words: `rank`, in words for each entry that the rank selects.
    """

    method: str
    nodes: int
    how: str
    rank: float
    node: float
    words: float


@dataclass(frozen=True)
class Setting:
    """What all methods have in common: N elements on nodes of L ranks, and so on."""

    numel: int
    density: float
    local: int
    steps: int

    @classmethod
    def of(
        cls, nodes: Sequence[int], numel: int, density: float, local: int, steps: int
    ) -> Setting:
        """With at most so many elements, of which every rank can own as many as every other.

        Raises:
            ValueError: there are not enough, or a number of nodes is no power of two.
        """
        if any(number < 2 or number & (number - 1) for number in nodes):
            raise ValueError(f"--nodes: expected powers of two, 2 at least, got {nodes}")
        numel -= numel % (max(nodes) * local)
        if density * numel < local * max(nodes):
            raise ValueError(
                f"--numel: expected an entry for every rank to own, of {density:.1%} that are "
                f"selected: {local * max(nodes) / density:.0f} elements at least"
            )
        return cls(numel, density, local, steps)

    def row(self, method: str, nodes: int, how: str, rank: float, within: bool) -> Row:
        """A row of a method whose ranks send so much."""
        slices = self.local if within else 1
        ranks = nodes * self.local // slices
        away = 1 if within else (ranks - self.local) / (ranks - 1)
        words = rank / (4 * self.density * self.numel / slices)
        return Row(method, nodes, how, rank, self.local * away * rank, words)


def rows(nodes: Sequence[int], setting: Setting) -> list[Row]:
    """Every method on every number of nodes."""
    found = [row for number in nodes for row in dense(number, setting)]
    pairs = tqdm([(name, within) for within in (True, False) for name in RECIPES], unit="recipe")
    for name, within in pairs:
        pairs.set_description(title(name, within))
        found += compressed(name, within, nodes, setting)
    return found


def title(name: str, within: bool) -> str:
    return f"{name}, within=node" if within else name


def dense(nodes: int, setting: Setting) -> Iterator[Row]:
    """An all-reduce of two levels, and one ring in which ranks of a node are neighbours."""
    whole = 4 * setting.numel
    between = 2 * (nodes - 1) / nodes * whole / setting.local
    yield setting.row(title("dense", True), nodes, "computed", between, within=True)
    ranks = nodes * setting.local
    ring = 2 * (ranks - 1) / ranks * whole
    words = ring / (4 * setting.density * setting.numel)
    yield Row("dense, ring", nodes, "computed", ring, ring, words)


def compressed(name: str, within: bool, nodes: Sequence[int], setting: Setting) -> Iterator[Row]:
    """A recipe on every number of nodes, as far as messages fit into a process.

    Those of an all-gather that do not are counted: all are as long as those among few ranks.
    """
    recipe, slices = RECIPES[name](setting.density), setting.local if within else 1
    numel, gathers = setting.numel // slices, not name.endswith("sharded")
    message = sent(recipe, PROCESSES, numel, setting.steps) / (PROCESSES - 1) if gathers else 0.0
    for number in nodes:
        ranks = number * setting.local // slices
        # Of owners every rank hears the length and the CRC-32 of every message to any of them.
        room = ranks * (message if gathers else 8 * ranks)
        if room <= ROOM:
            how = "processes" if ranks <= PROCESSES else "echoes"
            rank = sent(recipe, ranks, numel, setting.steps)
        elif gathers:
            how, rank = "computed", (ranks - 1) * message
        else:
            continue
        yield setting.row(title(name, within), number, how, rank, within)


def sent(recipe: dc.Recipe, ranks: int, numel: int, steps: int) -> float:
    """Bytes that a rank sends in a step, on average."""
    real = max(count for count in range(1, PROCESSES + 1) if ranks % count == 0)
    counts = on_ranks(real, measure, recipe, numel, steps, echoes=ranks // real)
    return sum(rank["sent_bytes"] for rank in counts) / real


def render(found: Sequence[Row], nodes: Sequence[int], setting: Setting) -> list[Table]:
    """What a node sends in megabytes, and a rank in words for each entry that it selects."""
    first = found[0].method
    baseline = {row.nodes: row.node for row in found if row.method == first}
    inside = 2 * (setting.local - 1) / setting.local * 4 * setting.numel

    def node(row: Row) -> str:
        return f"{row.node / 1e6:,.2f} ({baseline[row.nodes] / row.node:.3g}×){MARKS[row.how]}"

    def rank(row: Row) -> str:
        return f"{row.words:,.2f}{MARKS[row.how]}"

    by_node = Table(
        title=f"MB that a node of {setting.local} ranks sends to others, of {setting.numel:,} "
        f"elements and {setting.density:.1%}; (×): {first} / this",
        caption=f"with within=node a rank sends {inside / 1e6:.1f} MB inside its node, dense too",
    )
    by_rank = Table(
        title="Words that a rank sends for each entry that it selects",
        caption="measured among processes; *: among their echoes; °: computed; –: too large to run",
    )
    for table, cell in ((by_node, node), (by_rank, rank)):
        table.add_column("", no_wrap=True)
        for number in nodes:
            table.add_column(f"{number} nodes", justify="right")
        for method in dict.fromkeys(row.method for row in found):
            here = {row.nodes: cell(row) for row in found if row.method == method}
            table.add_row(method, *(here.get(number, "–") for number in nodes))
    return [by_node, by_rank]


def crossings(found: Sequence[Row]) -> Iterator[str]:
    """Where owners send less than an all-gather."""
    sent = {(row.method, row.nodes): row.rank for row in found}
    for name in (name for name in RECIPES if name.endswith("sharded")):
        for within in (True, False):
            owners, gather = title(name, within), title(name.partition(",")[0], within)
            less = [str(n) for m, n in sent if m == owners and sent[m, n] < sent[gather, n]]
            yield f"{owners}: less than {gather} on {', '.join(less) or 'no'} nodes"
