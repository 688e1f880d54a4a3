"""How long every method's steps take over slow links, each link rate so that ρ is as asked for."""

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from links import parse_rate
from links_hosts import run_ranks
from links_rank import ring
from netlab import Lab
from race_learn import RANKS, TRAIN, Race, read, write_whole
from race_methods import RATES, Method

RANK = Path(__file__).with_name("race_rank.py")
WARM_UP_STEPS = 12  # a warm-up is squeezed into so many
WARM_UP_ROUNDS = 5  # or, where steps are local, into so many rounds
SETTLE = 3  # untimed between warm-up and what is timed
COMPUTATION_STEPS = 30
NO_EXCHANGE = "no exchange"
ALL_REDUCE = "all-reduce"  # of a whole dense gradient, and nothing else


@dataclass(frozen=True)
class Entry:
    """One that takes turns.

    Args:
        name: of a method, or `NO_EXCHANGE` or `ALL_REDUCE`.
        words: arguments of `examples/train.py`.
        period: steps from one exchange to the next, timed together.
        units: so many times.
    """

    name: str
    words: list[str]
    period: int
    units: int


@dataclass(frozen=True)
class Job:
    """What every rank is told."""

    entries: list[Entry]
    limit: int  # seconds
    driver: int  # process id
    ranks_per_host: int = 1

    @property
    def lines(self) -> int:
        """Of progress."""
        return sum(entry.units for entry in self.entries)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        told = json.loads(text)
        return cls(**told | {"entries": [Entry(**each) for each in told["entries"]]})


def computation(race: Race, hosts: Lab, folder: Path, limit: int) -> dict[str, Any]:
    """Seconds of a step that exchanges nothing, before any link is slow; and the parameters."""
    file = folder / "computation.json"
    if not file.exists():
        found = run(hosts, [no_exchange(race, COMPUTATION_STEPS)], limit)
        seconds = found["seconds"][NO_EXCHANGE][SETTLE:]
        figures = {"step_s": statistics.median(seconds), "parameters": found["parameters"]}
        write_whole(file, figures)
    return read(file)


def rate_for(rho: float, step_s: float, parameters: int) -> str:
    """The link rate at which a ring all-reduce takes ρ times the computation's seconds."""
    sent_bytes = ring(4 * parameters, RANKS)
    return f"{max(1, round(8 * sent_bytes / (rho * step_s) / 1e6))}mbit"


def clock(
    race: Race, hosts: Lab, folder: Path, rho: float, units: int, limit: int
) -> dict[str, Any]:
    """Time the methods that the folder does not know at the rate for ρ.

    Args:
        race: whose methods.
        hosts: one rank each.
        folder: for the figures.
        rho: a dense exchange's seconds over the computation's.
        units: timed of each method: steps, or where steps are local rounds.
        limit: seconds that the ranks may take.

    Returns:
        All figures at that rate.
    """
    rate = rate_for(rho, **computation(race, hosts, folder, limit))
    file = folder / f"clock-{rate}.json"
    known: dict[str, Any] = (
        read(file) if file.exists() else {"rate": rate, "rho": rho, "methods": {}}
    )
    missing = [method for method in race.racers if method.name not in known["methods"]]
    if missing:
        hosts.shape(parse_rate(rate))
        entries = [entry(race, method, units) for method in missing]
        references = [no_exchange(race, units + SETTLE), all_reduce(race, units + SETTLE)]
        seconds = run(hosts, [*references, *entries], limit)["seconds"]
        step_s, exchange_s = (
            statistics.median(seconds[name][SETTLE:]) for name in (NO_EXCHANGE, ALL_REDUCE)
        )
        known |= {"computation_s": step_s, "exchange_s": exchange_s}
        known |= {"measured_rho": exchange_s / step_s}
        for method in missing:
            known["methods"][method.name] = pace(method, seconds[method.name], units)
        write_whole(file, known)
    return known


def run(hosts: Lab, entries: Sequence[Entry], limit: int) -> dict[str, Any]:
    """Seconds of every entry's units, and the model's parameters."""
    # The ranks train as the example does.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(TRAIN.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return run_ranks(hosts, str(RANK), Job(list(entries), limit, os.getpid()))


def entry(race: Race, method: Method, units: int) -> Entry:
    """A method's turns: its warm-up, squeezed; some to settle; those that count."""
    warm = warm_up_units(race, method)
    total = warm + SETTLE + units
    words = [
        *method.options.split(),
        *("--task", race.task, "--lr", str(RATES[race.task][0])),
        *("--steps", str(total * method.period), "--warmup-steps", str(warm * method.period)),
    ]
    return Entry(method.name, words, method.period, total)


def warm_up_units(race: Race, method: Method) -> int:
    """Of so many steps or rounds is the warm-up that is timed."""
    most = WARM_UP_STEPS if method.period == 1 else WARM_UP_ROUNDS
    return min(most, math.ceil(method.warmup_steps(race.steps) / method.period))


def no_exchange(race: Race, units: int) -> Entry:
    """The computation alone."""
    return Entry(NO_EXCHANGE, _dense(race, units), 1, units)


def all_reduce(race: Race, units: int) -> Entry:
    """The communication alone."""
    return Entry(ALL_REDUCE, _dense(race, units), 1, units)


def _dense(race: Race, units: int) -> list[str]:
    return ["--recipe", "none", "--task", race.task, "--steps", str(units), "--warmup-steps", "0"]


def pace(method: Method, seconds: Sequence[float], units: int) -> dict[str, Any]:
    """Seconds of one step, in the mean of the warm-up and in the median after it."""
    warm, rest = list(seconds[: -units - SETTLE]), seconds[-units:]
    step_s = statistics.median(rest) / method.period
    if len(warm) > 1:
        warm[0] = warm[1]  # in the first, ranks meet, and DDP has not arranged its buckets
    return {
        "warmup_step_s": statistics.mean(warm) / method.period if warm else step_s,
        "step_s": step_s,
        "all_s": list(seconds),
    }
