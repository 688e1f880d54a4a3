"""Advice as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_compress.advise.extras import needed
from ddp_compress.advise.link import Link, rate_text
from ddp_compress.advise.outlook import Outlook, Setting

if TYPE_CHECKING:
    from ddp_compress.advise.advice import Advice

DECADES = 2  # of link rates, below and above that of here
POINTS = 81


def draw(advice: Advice, path: Path) -> None:
    """Step time against link rate, every method's; the link of here and break-even points."""
    needed("matplotlib").use("Agg")
    plt = needed("matplotlib.pyplot")
    here, rate = advice.here, advice.here.link.rate
    rates = [rate * 10 ** (DECADES * (2 * n / (POINTS - 1) - 1)) for n in range(POINTS)]
    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    colours = plt.get_cmap("tab10")
    recipes = 0
    for each in advice.sorted:
        settings = (Setting(here.ranks, Link(r, here.link.latency)) for r in rates)
        steps = [1e3 * each.step(advice.workload, where) for where in settings]
        if each.is_recipe:
            style: dict[str, Any] = {"color": colours(recipes % 10)}
            recipes += 1
        else:
            style = {"color": "black", "linestyle": _dashes(advice, each)}
        axis.plot(rates, steps, label=each.name, **style)
        mark = advice.break_even(each) if each.is_recipe else None
        if mark is not None and mark < math.inf and rates[0] < mark < rates[-1]:
            where = Setting(here.ranks, Link(mark, here.link.latency))
            axis.plot(mark, 1e3 * each.step(advice.workload, where), "o", **style)
    axis.axvline(rate, color="grey", linewidth=1)
    known = "measured" if advice.is_measured else "assumed"
    axis.annotate(
        f" {known}: {rate_text(rate)}", (rate, 0.99), xycoords=axis.get_xaxis_transform(), va="top"
    )
    axis.set(xscale="log", yscale="log", xlabel="link of a rank, bits per second")
    axis.set_ylabel("ms a step")
    axis.set_title(f"{advice.workload.numel / 1e6:,.1f} M parameters on {here.ranks} ranks")
    axis.grid(alpha=0.3, which="both")
    axis.legend(title="○ breaks even", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _dashes(advice: Advice, outlook: Outlook) -> str:
    baselines = [each for each in advice.outlooks if not each.is_recipe]
    return ("-", "--", ":", "-.")[baselines.index(outlook) % 4]
