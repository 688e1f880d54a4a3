"""The figures of `links.py`: what ranks have sampled, what it comes to, and the table of it."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from rich.table import Table

from links_methods import DENSE, NO_EXCHANGE, Method
from networks import RESNET18_NUMEL

RANK_COLUMNS = (
    ("a rank:\npayload", "payload"),
    ("\nsent", "sent"),
    ("\nreceived", "received"),
    ("collec-\ntives", "collectives"),
)
INSIDE_COLUMNS = (
    ("inside:\nsent", "inside_sent"),
    ("\nreceived", "inside_received"),
    ("collec-\ntives", "inside_collectives"),
)
HOST_COLUMNS = (
    ("a host:\nsent", "interface_sent"),
    ("\nreceived", "interface_received"),
)


@dataclass(frozen=True)
class Count:
    """Running totals of one rank, and of its host's interface: bytes, but for the collectives and
    the entries that the payload holds."""

    entries: float = 0
    payload: float = 0
    sent: float = 0
    received: float = 0
    collectives: float = 0
    inside_sent: float = 0
    inside_received: float = 0
    inside_collectives: float = 0
    interface_sent: float = 0
    interface_received: float = 0

    def __sub__(self, other: "Count") -> "Count":
        return Count(*(a - b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> list[float]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class Sample:
    """One step of one method on one rank."""

    local_s: float
    step_s: float
    cpu_s: float  # of all the process's threads
    count: Count


def summarize(
    methods: Sequence[Method], gathered: Sequence[tuple[list[list[Sample]], dict[str, int]]]
) -> dict[str, Any]:
    """Figures of every method: medians over steps.

    Args:
        methods: in the order of the samples.
        gathered: of every rank, the samples of every method, and what the quiet network sends.
    """
    rounds = {
        method: list(zip(*(samples[index] for samples, _ in gathered), strict=True))
        for index, method in enumerate(methods)
    }
    rows = [
        summarize_method(method, taken, rounds[NO_EXCHANGE]) for method, taken in rounds.items()
    ]
    quiet = {name: max(quiet[name] for _, quiet in gathered) for name in gathered[0][1]}
    return {"quiet": quiet, "rows": rows}


def summarize_method(
    method: Method, rounds: Sequence[Sequence[Sample]], free: Sequence[Sequence[Sample]]
) -> dict[str, Any]:
    """Times of the slowest rank; bytes and processor time of the mean rank.

    `free` are the same rounds' steps without an exchange.
    """
    free_step, free_cpu = ([of(ranks) for ranks in free] for of in (slowest_step, mean_cpu))
    cpu = [mean_cpu(ranks) for ranks in rounds]
    step = [slowest_step(ranks) for ranks in rounds]
    local = [max(sample.local_s for sample in ranks) for ranks in rounds]
    counts = [sample.count for ranks in rounds for sample in ranks]
    names = [field.name for field in fields(Count)]
    return {
        "method": method.label,
        "step_s": statistics.median(step),
        "local_s": statistics.median(local),
        "above_no_sync_s": statistics.median(a - b for a, b in zip(step, local, strict=True)),
        "exchange_s": statistics.median(a - b for a, b in zip(step, free_step, strict=True)),
        "cpu_s": statistics.median(a - b for a, b in zip(cpu, free_cpu, strict=True)),
        "all_step_s": step,
        **{name: statistics.mean(getattr(count, name) for count in counts) for name in names},
    }


def slowest_step(ranks: Sequence[Sample]) -> float:
    return max(sample.step_s for sample in ranks)


def mean_cpu(ranks: Sequence[Sample]) -> float:
    return statistics.mean(sample.cpu_s for sample in ranks)


def render(rate: str, hosts: int, ranks_per_host: int, result: dict[str, Any]) -> Table:
    """The table of one rate. Bracketed: how many times less than dense."""
    rows, quiet = result["rows"], result["quiet"]
    local_s = statistics.median(row["local_s"] for row in rows)
    ranks = f" × {ranks_per_host} ranks" if ranks_per_host > 1 else ""
    table = Table(
        title=f"{RESNET18_NUMEL / 1e6:.1f} M parameters over {hosts} hosts{ranks} at {rate}/s",
        caption=f"kB a step; (×): dense / this; the step under no_sync takes "
        f"{1e3 * local_s:.0f} ms; with nothing to exchange an interface "
        f"sends {quiet['barrier_bytes']} B a step (a barrier) and "
        f"{quiet['silent_second_bytes']} B a second; load average before the run: "
        f"{result['load_before']:.1f} on {os.cpu_count()} cores",
    )
    levels = any(row["inside_collectives"] for row in rows)
    columns = [*RANK_COLUMNS, *(INSIDE_COLUMNS if levels else ()), *HOST_COLUMNS]
    table.add_column("", no_wrap=True)
    for heading in ("step\nms", "above\nno_sync ms", "exchange\nms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    dense = next(row for row in rows if row["method"] == DENSE.label)
    for row in rows:
        table.add_row(
            row["method"],
            f"{1e3 * row['step_s']:.1f}",
            *(beside(row[name], dense[name]) for name in ("above_no_sync_s", "exchange_s")),
            *(counted(name, row[name]) for _, name in columns),
        )
    return table


def counted(name: str, count: float) -> str:
    """Bytes in kB, collectives as they are."""
    return f"{count:.1f}" if name.endswith("collectives") else f"{count / 1e3:,.1f}"


def beside(seconds: float, dense_seconds: float) -> str:
    """Milliseconds, and how many times less than dense."""
    times = f"{dense_seconds / seconds:.1f}×" if seconds > 0 else "–"
    return f"{1e3 * seconds:.1f} ({times})"
