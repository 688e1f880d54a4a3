"""What `ddp_compress.advise` predicts, beside what `links.py` measures.

    sudo python bench/advice.py --rate 100mbit 1gbit unshaped --hosts 2 4 --json advice.json

Over the same hosts (see `netlab.py`), one after the other, both are told the same recipes and a
model with ResNet-18's parameter shapes. `links.py` steps a model whose gradients are nearly free,
all methods in turn; the adviser knows shapes alone, and runs samples of its own. Compared is the
step: what `links.py` measures, and the step under `no_sync` plus the exchange that the adviser
predicts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

import links_rank
from links import at_least, checked_rate, parse_rate
from links_hosts import RankError, run_command, run_ranks
from links_methods import methods
from links_rank import Job
from netlab import Lab, LabError, exit_on_signals, lab
from output import add_json, show, write_json

RECIPES = (
    "topk,density=0.01",
    "sbc,density=0.001",
    "hgc,density=0.001",
    "majority_vote,density=0.01",
    "sign",
    "stc,density=0.01",
)
UNSHAPED = "unshaped"
LIMIT = 300  # seconds
MODEL = "networks:resnet18"


@dataclass(frozen=True)
class Cell:
    """One method between some hosts. Seconds a step.

    Args:
        rate: of the links.
        hosts: how many.
        method: which.
        predicted: by the adviser.
        measured: by `links.py`.
        seconds: that the adviser took for all of its methods.
        verdict: of the adviser.
    """

    rate: str
    hosts: int
    method: str
    predicted: float
    measured: float
    seconds: float
    verdict: str

    @property
    def error(self) -> float:
        """How far off: 0.2 is a fifth too much."""
        return self.predicted / self.measured - 1


def cells(rate: str, count: int, recipes: Sequence[str], steps: int) -> Iterator[Cell]:
    """Every method between so many hosts."""
    with lab(count) as hosts:
        if rate != UNSHAPED:
            hosts.shape(parse_rate(rate))
        chosen = list(methods(["fp16", *recipes], []))
        job = Job(chosen, 1, steps, 0.0, LIMIT, driver=os.getpid())
        names = ["dense", "no exchange", "fp16", *recipes]
        rows = dict(zip(names, run_ranks(hosts, links_rank.__file__, job)["rows"], strict=True))
        advice = advised(hosts, recipes)
    local = statistics.median(row["local_s"] for row in rows.values())
    for each in advice["methods"]:
        if each["name"] in rows:
            yield Cell(
                rate,
                count,
                each["name"],
                local + each["exchange"],
                rows[each["name"]]["step_s"],
                advice["seconds"],
                advice["verdict"],
            )


def advised(hosts: Lab, recipes: Sequence[str]) -> dict[str, Any]:
    """The adviser's figures, of one rank on every host."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    with tempfile.NamedTemporaryFile(prefix="advice-", suffix=".json") as file:
        command = ["-m", "ddp_compress.advise", "--model", MODEL, "--recipes", *recipes]
        run_command(hosts, 1, [*command, "--json", file.name], LIMIT, lines=0)
        found: dict[str, Any] = json.loads(Path(file.name).read_text())
    return found


def render(found: Sequence[Cell]) -> Table:
    """Predicted and measured milliseconds of every method."""
    table = Table(title="milliseconds a step: predicted / measured (error)")
    table.add_column("", no_wrap=True)
    settings = list(dict.fromkeys((each.rate, each.hosts) for each in found))
    for rate, hosts in settings:
        table.add_column(f"{rate},\n{hosts} hosts", justify="right", no_wrap=True)
    by_place = {((each.rate, each.hosts), each.method): each for each in found}
    for method in dict.fromkeys(each.method for each in found):
        row = [by_place[setting, method] for setting in settings]
        table.add_row(
            method,
            *(f"{1e3 * c.predicted:,.0f} / {1e3 * c.measured:,.0f} ({c.error:+.0%})" for c in row),
        )
    table.add_row("adviser, s", *(f"{by_place[s, 'dense'].seconds:.0f}" for s in settings))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rate", nargs="+", type=rate_or_none, default=["100mbit", "1gbit", UNSHAPED])
    add("--hosts", nargs="+", type=at_least(2), default=[2, 4])
    add("--recipes", nargs="+", default=list(RECIPES))
    add("--steps", type=at_least(1), default=7)
    add_json(parser)
    options = parser.parse_args()
    exit_on_signals()
    found: list[Cell] = []
    try:
        for count in options.hosts:
            for rate in options.rate:
                found += cells(rate, count, options.recipes, options.steps)
                write_json(options.json, [asdict(each) for each in found])
                print(f"{count} hosts, {rate}: {found[-1].verdict}")
    except (LabError, RankError, ValueError) as error:
        print(f"advice.py: {error}", file=sys.stderr)
        return 1
    show(render(found))
    return 0


def rate_or_none(text: str) -> str:
    return text if text == UNSHAPED else checked_rate(text)


if __name__ == "__main__":
    sys.exit(main())
