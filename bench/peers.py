"""Peers' methods beside ours: bits an entry, time of selection and coding, time of a step.

    sudo python bench/peers.py --steps 10 --json peers.json

Four ranks on hosts behind links of each rate, as in `links.py`, send gradients of ResNet-18's
shapes. What of others is re-enacted, and how, stands with it, see `links_peers.py`.

* bits an entry: everything that a rank encodes for others, over the entries therein: of sparse
  methods those that are sent, of others the elements of the gradient.
* coding: processor time of a rank's step less that of a hook that hands the bucket back, on all its
  threads, at the highest rate: selection, packing, unpacking, residuals. The kernel's share in
  sending and receiving is in it: little with sparse messages, of dense ones the most.
* over floor: the same over that of ``r.add_(g)``, the least that error feedback takes.
* step: median step of the slowest rank at each rate; bracketed, how many times less than dense.
"""

import argparse
import os
import sys
from typing import Any

from rich.table import Table

import links_rank
from links import at_least, checked_rate, density, parse_rate
from links_figures import beside
from links_hosts import RankError, run_ranks
from links_methods import methods
from links_rank import Job
from netlab import LabError, exit_on_signals, lab
from networks import RESNET18_NUMEL
from output import add_json, show, write_json

HOSTS = 4
METHODS = (
    "floor",
    "fp16",
    "bf16",
    "powersgd,rank=1",
    "powersgd,rank=2",
    "powersgd,rank=4",
    "cgx",
    "one_bit",
    "pairs",
    "grace_topk",
    "grace_topk,index_bits=32",
    "grace_dgc",
    "grace_dgc,index_bits=32",
    "ok_topk",
    "topk",
    "dgc",
    "sbc",
    "hgc",
    "majority_vote,density=0.01",
    "stc",
    "sign",
    "rotated",
)


Rows = dict[str, dict[str, Any]]  # of `links.py`, by the method's label


def render(rates: dict[str, Rows], load: float) -> Table:
    """One row a method; all but steps is of the highest rate."""
    highest = rates[max(rates, key=parse_rate)]
    floor = highest["floor"]["cpu_s"]
    table = Table(
        title=f"{RESNET18_NUMEL / 1e6:.1f} M parameters over {HOSTS} hosts",
        caption=f"(×): dense / this; load average before: {load:.1f} on {os.cpu_count()} cores",
    )
    table.add_column("", no_wrap=True)
    for heading in ("bits\nan entry", "entries\nsent", "payload\nkB", "coding\nms", "over\nfloor"):
        table.add_column(heading, justify="right", no_wrap=True)
    for rate in rates:
        table.add_column(f"step at\n{rate}/s, ms", justify="right", no_wrap=True)
    for label, row in highest.items():
        bits, entries = 8 * row["payload"], row["entries"]
        table.add_row(
            label,
            f"{bits / entries:.2f}" if entries else "–",
            f"{entries / RESNET18_NUMEL:.2%}",
            f"{bits / 8e3:,.1f}",
            f"{1e3 * row['cpu_s']:.1f}",
            f"{row['cpu_s'] / floor:.1f}",
            *(beside(rows[label]["step_s"], rows["dense"]["step_s"]) for rows in rates.values()),
        )
    return table


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rate", nargs="+", type=checked_rate, default=["100mbit", "1gbit"], help="of each link")
    add("--density", type=density, default=0.001, help="of what has one and is not given its own")
    add("--steps", type=at_least(1), default=10, help="measured for each method")
    add("--limit", type=at_least(1), default=3600, help="seconds that the ranks may take, per rate")
    add_json(parser)
    return parser


def main() -> int:
    options = argument_parser().parse_args()
    exit_on_signals()
    load = os.getloadavg()[0]
    chosen = list(dict.fromkeys(methods(METHODS, [options.density])))
    job = Job(chosen, 1, options.steps, 0.0, options.limit, driver=os.getpid())
    rates: dict[str, Rows] = {}
    try:
        with lab(HOSTS) as hosts:
            for rate in options.rate:
                hosts.shape(parse_rate(rate))
                rates[rate] = {
                    row["method"]: row for row in run_ranks(hosts, links_rank.__file__, job)["rows"]
                }
                write_json(options.json, rates)
    except (LabError, RankError) as error:
        print(f"peers.py: {error}", file=sys.stderr)
        return 1
    show(render(rates, load))
    return 0


if __name__ == "__main__":
    sys.exit(main())
