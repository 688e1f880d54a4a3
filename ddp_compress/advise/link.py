"""A link between ranks: how long it takes, and how fast it is; measured, or as a user says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from ddp_compress.advise.ranks import Ranks

RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
FEW, PINGS = 64, 20  # bytes to every rank, and how often
FIRST, MOST = 2**16, 2**26  # bytes that are reduced
LONG_ENOUGH = 0.2  # seconds in which latency does not count


@dataclass(frozen=True)
class Link:
    """What a rank has to the others.

    Args:
        rate: bits per second that it can send, and receive at the same time.
        latency: seconds of a collective of few bytes.

    Example:
        >>> Link(rate=1e9, latency=1e-3).seconds(phases=2, sent=125e6)
        1.002
    """

    rate: float
    latency: float

    def seconds(self, phases: float, sent: float) -> float:
        """How long so many collectives, which wait for each other, and bytes take."""
        return phases * self.latency + 8 * sent / self.rate

    def __str__(self) -> str:
        return f"{rate_text(self.rate)}, {1e3 * self.latency:.2g} ms"


def rate_text(rate: float) -> str:
    """Bits per second, to be read.

    Example:
        >>> rate_text(94.1e6)
        '94.1 Mbit/s'
    """
    unit = next((u for u in ("tbit", "gbit", "mbit", "kbit") if rate >= RATES[u]), "bit")
    return f"{rate / RATES[unit]:.3g} {unit.removesuffix('bit').upper().replace('K', 'k')}bit/s"


def parse_rate(text: str) -> float:
    """Bits per second of a rate such as "100mbit".

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_rate("2.5gbit")
        2500000000.0
    """
    return _parse(text, RATES, "a rate such as 100mbit or 2.5gbit")


def parse_seconds(text: str) -> float:
    """Seconds of a time such as "1ms"; a number alone is of seconds.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_seconds("250us"), parse_seconds("0.35")
        (0.00025, 0.35)
    """
    return _parse(text, TIMES | {"": 1.0}, "a time such as 1ms or 0.35s")


def _parse(text: str, units: dict[str, float], expected: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)(?:/s)?", text.lower())
    if not match or match[2] not in units or float(match[1]) == 0:
        raise ValueError(f"expected {expected}, got {text!r}")
    return float(match[1]) * units[match[2]]


def measure(ranks: Ranks) -> Link:
    """Time all-to-alls of few bytes for the latency, all-reduces of more and more for the rate."""
    few = ranks.tensor(FEW * ranks.world_size, torch.uint8)
    ping = partial(dist.all_to_all_single, torch.empty_like(few), few, group=ranks.group)
    latency = ranks.slowest(min(ranks.seconds(ping) for _ in range(PINGS)))
    size, seconds = FIRST, 0.0
    while seconds < LONG_ENOUGH and size < MOST:
        size *= 4
        reduce = partial(dist.all_reduce, ranks.tensor(size // 4, torch.float32), group=ranks.group)
        seconds = ranks.slowest(min(ranks.seconds(reduce) for _ in range(2)))
    return Link(8 * ring(size, ranks.world_size) / seconds, latency)


def ring(payload: float, world_size: int) -> float:
    """Bytes that a rank sends in an all-reduce, which is a reduce-scatter and an all-gather.

    Example:
        >>> ring(100.0, world_size=4)
        150.0
    """
    return 2 * (world_size - 1) / world_size * payload
