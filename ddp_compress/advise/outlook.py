"""What a step would take with one method: as measured, on more ranks, over other links."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ddp_compress.advise.link import Link
from ddp_compress.advise.workload import Workload

LINKS = 1e5, 1e13  # bits per second, between which break-even is looked for


@dataclass(frozen=True)
class Cost:
    """What an exchange costs a rank, whatever the link.

    Args:
        work: seconds of selecting, coding and copying.
        sent: bytes, or received if these are more.
        phases: collectives that wait for each other.
    """

    work: float
    sent: float
    phases: float

    def seconds(self, link: Link) -> float:
        """How long the exchange takes over a link."""
        return self.work + link.seconds(self.phases, self.sent)


@dataclass(frozen=True)
class Setting:
    """Where an exchange takes place.

    Args:
        ranks: how many.
        link: between them.
    """

    ranks: int
    link: Link


@dataclass(frozen=True)
class Outlook:
    """One method's.

    What was measured stands: some of it is work, the rest is bytes on their way. For another
    setting the work grows as its costs do, and the rest as an ideal link's time:

        exchange = (measured - travels) * work there / work here
                   + travels * ideal there / ideal here.

    A share of the exchange is hidden behind backward, as much as it was in the measurement:

        step = forward and backward + exchange - hidden * min(exchange, backward).

    Args:
        name: the method's.
        what: it does, in a line.
        is_recipe: whether it is one of ours.
        here: where it was measured, or is assumed to run.
        costs: by the number of ranks; of those among which they could be measured.
        kept: bytes from step to step.
        hidden: share, of what could be hidden behind backward, that is.
        measured: seconds of the exchange here; None where it is computed from its costs.
        spread: half the distance between the quartiles of these.
        share: of the model's elements, that it was measured on.

    Example:
        >>> here = Setting(4, Link(1e9, 1e-3))
        >>> dense = Outlook("dense", "averages", False, here, {4: Cost(0.0, 1e8, 1)})
        >>> round(dense.step(Workload([], step=0.1)), 3)
        0.901
        >>> round(dense.step(Workload([], step=0.1), Setting(4, Link(1e10, 1e-3))), 3)
        0.181
    """

    name: str
    what: str
    is_recipe: bool
    here: Setting
    costs: Mapping[int, Cost]
    kept: float = 0.0
    hidden: float = 0.0
    measured: float | None = None
    spread: float = 0.0
    share: float = 1.0

    def exchange(self, where: Setting | None = None) -> float:
        """Seconds of an exchange."""
        where = where or self.here
        there = self.costs[where.ranks]
        if self.measured is None:
            return there.seconds(where.link)
        here = self.costs[self.here.ranks]
        ideal = self.here.link.seconds(here.phases, here.sent)
        travels = min(self.measured, max(self.measured - here.work, ideal))
        longer = where.link.seconds(there.phases, there.sent) / ideal if ideal else 1.0
        harder = there.work / here.work if here.work else 1.0
        return (self.measured - travels) * harder + travels * longer

    def step(self, workload: Workload, where: Setting | None = None) -> float:
        """Seconds of a training step."""
        exchange = self.exchange(where)
        return workload.step + exchange - self.hidden * min(exchange, workload.backward)

    @property
    def sent(self) -> float:
        """Bytes a step, here."""
        return self.costs[self.here.ranks].sent


def break_even(outlook: Outlook, others: list[Outlook], workload: Workload) -> float | None:
    """The link rate below which a method is quicker than all others, by halving.

    Args:
        outlook: the method's.
        others: those that a user has without it.
        workload: what is trained.

    Returns:
        Bits per second; infinity where it is quicker over any link, None where over none.
    """
    latency, ranks = outlook.here.link.latency, outlook.here.ranks

    def wins(rate: float) -> bool:
        where = Setting(ranks, Link(rate, latency))
        return outlook.step(workload, where) < min(o.step(workload, where) for o in others)

    low, high = LINKS
    if not wins(low):
        return None
    if wins(high):
        return math.inf
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if wins(middle) else (low, middle)
    return low
