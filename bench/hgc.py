"""Hybrid Gradient Compression on real gradients: how small messages are, and why.

    python bench/hgc.py

ResNet-18 learns digits (see `digits.py`) on four ranks, its gradients carried by `hgc` at 0.1 % and
1 bit, whose density falls from 25 % in the first steps. Later the paper's other settings, and each
without a predictor, are given the same gradients. Figures are means over the last steps and ranks.

The paper divides its ratio into three factors (Table 3). With K entries of q bits, W ranks and
dense gradients of 32 N bits, here they are:

* intrinsic: dense / (positions + levels). What a rank alone would send: its own positions as they
  go over the wire, q bits for each of the K levels, and the 2^q means.
* cross-client: (positions + levels) / (positions / W + levels). One rank sends positions for all.
* temporal: (positions / W + levels) / payload. Levels are predicted and entropy-coded. Every header
  and every count counts here, against it.

Their product is dense / payload, with the payload's mean over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

import ddp_compress as dc
from digits import Gradients, Outcome, parse, parser_of, train
from networks import RESNET18_NUMEL, RESNET18_SIZES
from output import show, write_json
from wire import entropy

PREDICTOR = 0.9
DENSE_BITS = 32 * RESNET18_NUMEL


@dataclass(frozen=True)
class Setting:
    """A row of the paper's Table 3."""

    density: float
    bits: int
    paper: tuple[float, float, float, float]  # its three factors and its ratio

    def recipe(self, warm_up: int, momentum: float, predictor: float | None) -> dc.Recipe:
        density = dc.exponential_warmup(self.density, warm_up) if warm_up else self.density
        return dc.recipes.hgc(density, self.bits, predictor, momentum=momentum)


SETTINGS = (
    Setting(0.001, 1, (1898.46, 3.40, 2.37, 15286.02)),
    Setting(0.01, 1, (197.77, 3.37, 4.47, 2982.73)),
    Setting(0.001, 2, (1641.04, 3.06, 1.30, 6506.96)),
)


@dataclass(frozen=True)
class Sizes:
    """Bits of a step: of all ranks' payloads, and of those the positions and the values."""

    payload: float
    positions: float
    values: float
    entries: float  # of one rank


def watch(
    states: Sequence[dc.CompressionState], own: Gradients, came: Sequence[Gradients]
) -> list[tuple[dict[str, float], list[int]]]:
    """Each state's counts, and the entries of each parameter."""
    rows = []
    for state, gradients in zip(states, came, strict=True):
        counts = [int(gradients[name].count_nonzero()) for name in RESNET18_SIZES]
        rows.append((state.stats.state_dict(), counts))
    return rows


def sizes(outcome: Outcome, index: int, measured: int) -> Sizes:
    """Mean sizes over the last steps."""
    ends = [(ranks[-measured - 1][index][0], ranks[-1][index][0]) for ranks in outcome.watched]

    def mean(name: str) -> float:
        return sum(after[name] - before[name] for before, after in ends) / measured

    entries = mean("nonzeros") / len(outcome.watched)
    return Sizes(mean("payload_bits"), mean("position_bits"), mean("value_bits"), entries)


def uneven_entropy(outcome: Outcome, index: int, measured: int) -> float:
    """Bits a position where each parameter has a density of its own, and nothing else is known."""
    bits = entries = 0.0
    for step in outcome.watched[0][-measured:]:
        for count, size in zip(step[index][1], RESNET18_SIZES.values(), strict=True):
            if 0 < count < size:
                bits += count * entropy(count / size)
            entries += count
    return bits / entries


def row(outcome: Outcome, index: int, measured: int, setting: Setting) -> dict[str, Any]:
    """All figures of a setting, whose state ``index`` is; the next one has no predictor."""
    ranks = len(outcome.watched)
    with_predictor, without = (sizes(outcome, i, measured) for i in (index, index + 1))
    positions, k = with_predictor.positions, with_predictor.entries
    levels = setting.bits * k + 32 * 2**setting.bits
    alone, shared = positions + levels, positions / ranks + levels
    payload = with_predictor.payload / ranks
    rest = with_predictor.payload - with_predictor.positions - with_predictor.values
    return {
        **asdict(setting),
        "ratio": DENSE_BITS / payload,
        "ratio_without_predictor": DENSE_BITS / (without.payload / ranks),
        "factors": (DENSE_BITS / alone, alone / shared, shared / payload),
        "entries": k,
        "bits_a_position": positions / k,
        "entropy": entropy(setting.density),
        "uneven_entropy": uneven_entropy(outcome, index, measured),
        "bits_a_value": with_predictor.values / ranks / k,
        "bits_a_value_without_predictor": without.values / ranks / k,
        "bytes": {
            "positions": positions / ranks / 8,
            "values": with_predictor.values / ranks / 8,
            "rest": rest / ranks / 8,
            "payload": payload / 8,
        },
    }


def factors_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Payload ratio, mean over ranks, and its factors; in brackets the paper's")
    for column in ("density", "bits", "ratio", "no predictor"):
        table.add_column(column, justify="right")
    for column in ("intrinsic", "cross-client", "temporal"):
        table.add_column(column, justify="right")
    for each in rows:
        ours, theirs = (each["ratio"], *each["factors"]), (each["paper"][3], *each["paper"][:3])
        ratio, *factors = [f"{a:,.2f} ({b:,.2f})" for a, b in zip(ours, theirs, strict=True)]
        without = f"{each['ratio_without_predictor']:,.0f}"
        table.add_row(f"{each['density']:.1%}", str(each["bits"]), ratio, without, *factors)
    return table


def split_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="What a message holds, mean over ranks",
        caption="H(p) / p: positions spread evenly; by parameter: evenly within each",
    )
    columns = ("density", "bits", "bits a position", "H(p) / p", "by parameter", "bits a value")
    for column in (*columns, "no predictor", "positions B", "values B", "rest B", "payload B"):
        table.add_column(column, justify="right")
    for each in rows:
        names = ("bits_a_position", "entropy", "uneven_entropy")
        values = ("bits_a_value", "bits_a_value_without_predictor")
        table.add_row(
            f"{each['density']:.1%}",
            str(each["bits"]),
            *(f"{each[name]:.3f}" for name in names + values),
            *(f"{size:,.0f}" for size in each["bytes"].values()),
        )
    return table


def main() -> None:
    """Train, and print both tables."""
    parser = parser_of(__doc__, steps=240, warm_up=60, settle=40, measured=80)
    add = parser.add_argument
    add("--momentum", type=float, default=0.0, help="of the recipe")
    add("--settings", type=int, default=len(SETTINGS), help="how many rows of the paper's table")
    options, training = parse(parser)
    if options.measured % options.ranks:
        parser.error("--measured must be a multiple of --ranks: each owns the mask in its turn")

    settings = SETTINGS[: options.settings]
    recipes = [
        setting.recipe(options.warm_up, options.momentum, predictor)
        for setting in settings
        for predictor in (PREDICTOR, None)
    ]
    outcome = train(training, recipes, watch)
    rows = [
        row(outcome, 2 * index, options.measured, setting) for index, setting in enumerate(settings)
    ]
    show(factors_table(rows), split_table(rows))
    print(training.summary(outcome))
    figures = {"training": asdict(training), "loss": outcome.losses, "rows": rows}
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
