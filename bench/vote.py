"""The majority-vote paper's Table 1 on the wire: uplink bits for each element of the model.

    python bench/vote.py

ResNet-18 learns digits (see `digits.py`), its gradients carried by the vote at 1 %, values in fp32.
Later the other variants, and each with 4-bit values, are given the same gradients. Figures are
means over the last steps and over ranks. *Location* is what ballots took, *value* what values took,
both after entropy coding, and *payload* is everything that a rank encoded: headers, counts and,
where ranks own positions, their answers too.

Of add-drop, further: the share of votes that are dropped in a step, what each costs as a place in
the last ballot, in model order, and the least that such a place costs on average. Of 4-bit values:
the entropy of the levels, signs included, beside the bits a value that they took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from rich.table import Table
from torch import Tensor

import ddp_compress as dc
from ddp_compress import ops
from digits import Gradients, parse, parser_of, train
from networks import RESNET18_NUMEL, RESNET18_SIZES
from output import show, write_json
from wire import entropy

DENSITY, CHANGE = 0.01, 0.1
Variant = Literal["top", "random", "add_drop"]
ValueBits = Literal[32, 4]
ROWS: tuple[tuple[Variant, ValueBits], ...] = (
    ("top", 32),
    ("top", 4),
    ("random", 32),
    ("random", 4),
    ("add_drop", 32),
    ("add_drop", 4),
)
LOCATION = {"top": 9e-2, "random": 9e-2, "add_drop": 2.4e-2}  # the paper's
VALUE = {32: 3.2e-1, 4: 4e-2}


@dataclass(frozen=True)
class Drops:
    """Votes that a rank dropped in one step."""

    dropped: int
    bits: int
    added: int
    votes: int  # before


@dataclass(frozen=True)
class Seen:
    """One state after one step on one rank."""

    counts: dict[str, float]
    drops: Drops | None = None
    level_entropy: float | None = None  # bits a value


class Watch:
    """Looks at every state of one rank after every step."""

    def __init__(self) -> None:
        self.last: dict[int, dict[str, Tensor]] = {}

    def __call__(
        self, states: Sequence[dc.CompressionState], own: Gradients, came: Sequence[Gradients]
    ) -> list[Seen]:
        given = flat(own)
        return [
            self.look(index, state, given, flat(mean) != 0)
            for index, (state, mean) in enumerate(zip(states, came, strict=True))
        ]

    def look(self, index: int, state: dc.CompressionState, own: Tensor, mask: Tensor) -> Seen:
        variant, value_bits = ROWS[index]
        if (variant, value_bits) in (("top", 32), ("random", 32)):
            return Seen(state.stats.state_dict())
        kept = {slot: flat(parts) for slot, parts in state.state_dict()["tensors"].items()}
        last = self.last.get(index)
        self.last[index] = kept
        if last is None:
            return Seen(state.stats.state_dict())
        drops = levels = None
        if variant == "add_drop":
            drops = dropped(last["vote"].bool(), kept["vote"].bool())
        if value_bits == 4:
            sent = last["residual"][mask] + own[mask] - kept["residual"][mask]
            levels = entropy_of_levels(sent)
        return Seen(state.stats.state_dict(), drops, levels)


def flat(parts: Gradients) -> Tensor:
    """All parameters in model order, [N]."""
    return torch.cat([parts[name].flatten() for name in RESNET18_SIZES])


def dropped(before: Tensor, after: Tensor) -> Drops:
    """Code the places of what was dropped in the list of votes before."""
    places = (~after)[before].nonzero().flatten().int()
    votes = int(before.sum())
    bits = 8 * len(ops.golomb_encode(places, torch.tensor([0, votes])))
    return Drops(len(places), bits, int((after & ~before).sum()), votes)


def entropy_of_levels(sent: Tensor) -> float:
    """Bits a value, of values that are a few levels but for the rounding of a residual."""
    values = sent.sort().values
    steps = values.diff() > 1e-3 * torch.maximum(values[1:].abs(), values[:-1].abs())
    counts = torch.bincount(torch.cat([steps.new_zeros(1), steps]).long().cumsum(0))
    shares = counts / len(values)
    return -(shares * shares.log2()).sum().item()


@dataclass(frozen=True)
class Row:
    """A row of the table: bits for each element, and of one entry."""

    variant: Variant
    value_bits: ValueBits
    location: float
    value: float
    payload: float
    bits_a_vote: float  # ballots, for each of K
    bits_a_value: float
    level_entropy: float | None
    drops: dict[str, float] | None


def row(watched: list[list[list[Seen]]], index: int, measured: int) -> Row:
    """Means over the last steps of a state."""
    ends = [(r[-measured - 1][index].counts, r[-1][index].counts) for r in watched]
    k = max(1, round(DENSITY * RESNET18_NUMEL))

    def mean(name: str) -> float:
        return sum(b[name] - a[name] for a, b in ends) / measured / len(watched)

    close = [step[index] for rank in watched for step in rank[-measured:]]
    levels = [seen.level_entropy for seen in close if seen.level_entropy is not None]
    return Row(
        *ROWS[index],
        mean("position_bits") / RESNET18_NUMEL,
        mean("value_bits") / RESNET18_NUMEL,
        mean("payload_bits") / RESNET18_NUMEL,
        mean("position_bits") / k,
        mean("value_bits") / k,
        sum(levels) / len(levels) if levels else None,
        summed([seen.drops for seen in close if seen.drops is not None]),
    )


def summed(drops: list[Drops]) -> dict[str, float] | None:
    """Shares of the votes before, and bits for each that was dropped."""
    gone, votes = sum(d.dropped for d in drops), sum(d.votes for d in drops)
    if not gone:
        return None
    return {
        "dropped": gone / votes,
        "added": sum(d.added for d in drops) / votes,
        "bits": sum(d.bits for d in drops) / gone,
        "entropy": entropy(gone / votes),
    }


def render(rows: list[Row], ranks: int) -> Table:
    table = Table(
        title=f"Uplink bits for each of {RESNET18_NUMEL:,} elements, {ranks} ranks; in brackets "
        "the paper's Table 1",
        caption="payload: location, value, headers, counts, and answers where ranks own positions",
    )
    for column in ("variant", "values"):
        table.add_column(column)
    columns = ("location", "value", "payload", "bits a vote", "bits a value", "level entropy")
    for column in (*columns, "dropped", "bits a drop", "least"):
        table.add_column(column, justify="right")
    for each in rows:
        drops = each.drops
        table.add_row(
            each.variant,
            f"{each.value_bits} bits",
            f"{each.location:.2e} ({LOCATION[each.variant]:.1e})",
            f"{each.value:.2e} ({VALUE[each.value_bits]:.1e})",
            f"{each.payload:.2e}",
            f"{each.bits_a_vote:.3f}",
            f"{each.bits_a_value:.3f}",
            "" if each.level_entropy is None else f"{each.level_entropy:.3f}",
            f"{drops['dropped']:.2%}" if drops else "",
            *(f"{drops[name]:.3f}" if drops else "" for name in ("bits", "entropy")),
        )
    return table


def main() -> None:
    """Train, and print the table."""
    parser = parser_of(__doc__, steps=120, warm_up=30, settle=20, measured=20)
    parser.add_argument("--ballot-box", choices=["auto", "gather", "sharded"], default="auto")
    options, training = parse(parser)
    density = dc.exponential_warmup(DENSITY, options.warm_up) if options.warm_up else DENSITY
    recipes = [
        dc.recipes.majority_vote(
            density, variant, CHANGE, value_bits, ballot_box=options.ballot_box
        )
        for variant, value_bits in ROWS
    ]
    outcome = train(training, recipes, Watch())
    rows = [row(outcome.watched, index, options.measured) for index in range(len(ROWS))]
    show(render(rows, options.ranks))
    print(training.summary(outcome))
    figures = {"training": asdict(training), "rows": [asdict(each) for each in rows]}
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
