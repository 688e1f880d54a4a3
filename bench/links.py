"""What a gradient exchange costs over slow links: dense, every recipe, and others' methods.

    sudo python bench/links.py --rate 1gbit 100mbit --density 0.001 --json links.json
    sudo python bench/links.py --recipes majority_vote,density=0.01,value_bits=4 sbc,codec=golomb
    sudo python bench/links.py --recipes rotated,keep=0.5,down=rotated,bits=5
    sudo python bench/links.py --recipes bf16 powersgd,rank=4 pairs,density=0.01 topk,density=0.01
    sudo python bench/links.py --hosts 2 --ranks-per-host 2 --recipes sbc sbc,within=node

Each host (see `netlab.py`) stands behind a link of the given rate; ranks of one host reach each
other past it. Every method (`links_methods.py`; others' methods: `links_peers.py`) sends the
gradients of one model with ResNet-18's parameter shapes (11.2 M parameters, 44.7 MB), which is
nearly free (`gradients.py`). Methods take turns, step by step (`links_rank.py`), and each figure is
a median over the steps (`links_figures.py`):

* step: forward and backward through DDP, on the slowest rank, from a common start.
* above no_sync: step less the same step under `no_sync`: exchange, and DDP's own bucket copies.
* exchange: step less the step of "no exchange", a hook that hands the bucket back as it is: what
  compression, communication and decompression add to DDP, computation on shared cores included.
* cpu_s, in the JSON alone: the same of processor time, of all threads of the mean rank: selection,
  coding, and the kernel's share in sending and receiving.
* payload, sent, received, collectives: what `state.stats` says, per rank and step: between nodes
  with `within=node` (a rank sends and receives of its slice alone), else between all ranks, those
  of one host too. For dense, PyTorch's hooks and "no exchange" they are computed: a ring all-reduce
  sends 2(W-1)/W of its bytes. `dense,within=node` (`links_levels.py`) is computed likewise.
* inside: the same of the level inside a host, where a method has one.
* interface: what a host's network interface counted meanwhile, of all its ranks together, TCP
  acknowledgements and packet headers included. (At high rates TCP leaves cutting packets into
  frames to the interface, which counts one header for them all: up to 5 % of a real wire's bytes
  are then not counted.)
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import torch

import links_rank
from links_figures import render
from links_hosts import RankError, run_ranks
from links_methods import methods
from links_peers import PEERS
from links_rank import DENSE_BYTES, Job
from netlab import LabError, burst_bytes, exit_on_signals, lab
from networks import RESNET18_NUMEL
from output import add_json, show, write_json

RECIPES = (
    "fp16",
    "topk",
    "dgc",
    "sbc",
    "sbc,codec=golomb",
    "majority_vote",
    "hgc",
    "stc",
    "sign",
)
UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}


def parse_rate(text: str) -> int:
    """Bits per second of a rate such as "100mbit"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", text.lower())
    rate = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if rate < UNITS["mbit"]:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate of at least 1mbit, such as 100mbit")
    return rate


def checked_rate(text: str) -> str:
    parse_rate(text)
    return text.lower()


def density(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no density: expected 0 < density <= 1")
    return value


def at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number >= {least}")
        return int(text)

    return parse


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rate", nargs="+", type=checked_rate, default=["1gbit"], help="of each link: 100mbit …")
    add(
        "--recipes",
        nargs="*",
        default=list(RECIPES),
        metavar="NAME[,WORD=VALUE...]",
        help="beside dense, with words of the recipe and of attach, such as "
        "majority_vote,density=0.01 or sbc,within=node; or dense,within=node; or one of "
        f"{', '.join(PEERS)}; "
        f"default: {' '.join(RECIPES)}",
    )
    add(
        "--density",
        nargs="+",
        type=density,
        default=[0.001],
        help="of every recipe that has one and is not given its own",
    )
    add(
        "--backward",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="of every backward pass, in which the host has nothing else to do; 0 by default",
    )
    add("--steps", type=at_least(1), default=10, help="measured for each method")
    add("--hosts", type=at_least(2), default=4)
    add("--ranks-per-host", type=at_least(1), default=1)
    add("--limit", type=at_least(1), default=900, help="seconds that the ranks may take, per rate")
    add_json(parser)
    return parser


def main() -> int:
    options = argument_parser().parse_args()
    exit_on_signals()
    results: list[dict[str, Any]] = []
    try:
        chosen = dict.fromkeys(methods(options.recipes, options.density))
        told = options.ranks_per_host, options.steps, options.backward, options.limit
        job = Job(list(chosen), *told, driver=os.getpid())
        with lab(options.hosts) as hosts:
            for rate in options.rate:
                bits = parse_rate(rate)
                hosts.shape(bits)
                load = os.getloadavg()[0]
                result = run_ranks(hosts, links_rank.__file__, job) | {"load_before": load}
                show(render(rate, options.hosts, options.ranks_per_host, result))
                results.append({"rate": rate, "burst_bytes": burst_bytes(bits), **result})
                write_json(options.json, describe(options, results))
    except (LabError, RankError, ValueError) as error:
        print(f"links.py: {error}", file=sys.stderr)
        return 1
    return 0


def describe(options: argparse.Namespace, results: list[dict[str, Any]]) -> dict[str, Any]:
    """All figures of a run, and what they were measured on."""
    return {
        "parameters": RESNET18_NUMEL,
        "dense_bytes": DENSE_BYTES,
        "hosts": options.hosts,
        "ranks_per_host": options.ranks_per_host,
        "steps": options.steps,
        "backward_s": options.backward,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "results": results,
    }


if __name__ == "__main__":
    sys.exit(main())
