"""What a race came to: a table for every ρ, and a plot of all."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from race_join import Learned, best_of_sixteen_bits, paces, seconds_to_target
from race_learn import DENSE

ABOVE = 1.0  # nats above the target are drawn
COLUMNS = (
    "learning\nrate",
    "tries",
    "\nsteps",
    "a step\nms",
    "in the\nwarm-up",
    "to the\ntarget",
    "sooner than\ndense",
    "\n16-bit",
    "MB sent\na rank",
    "final\nloss",
)


def render(everyone: Sequence[Learned], clock: Mapping[str, Any]) -> Table:
    """The table of one ρ: the soonest first."""
    seconds = seconds_to_target(everyone, clock)
    known = paces(clock)
    dense, half = seconds.get(DENSE.name), best_of_sixteen_bits(seconds)
    target = everyone[0].targets[0]
    table = Table(
        title=f"ρ = {clock['measured_rho']:.2f} (wanted {clock['rho']:g}): four hosts at "
        f"{clock['rate']}/s, {1e3 * clock['computation_s']:.0f} ms of computation a step, "
        f"{1e3 * clock['exchange_s']:.0f} ms of dense all-reduce",
        caption=f"target: dense's last loss of the same seed, {target:.4f} on the first; "
        f"means over {len(everyone[0].targets)} seeds; – where a seed did not reach it",
    )
    table.add_column("", no_wrap=True)
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    there = [each for each in everyone if each.method.name in known]
    for each in sorted(there, key=lambda each: seconds[each.method.name] or math.inf):
        name = each.method.name
        table.add_row(
            name,
            f"{each.lr:g}",
            str(each.tries),
            f"{each.mean('steps'):.0f}",
            f"{1e3 * known[name].step_s:.1f}",
            f"{1e3 * known[name].warmup_step_s:.1f}" if each.method.warmup else "",
            duration(seconds[name]),
            times(dense, seconds[name]),
            times(half, seconds[name]),
            f"{each.mean('megabytes'):,.0f}",
            f"{each.mean('losses'):.4f}",
        )
    return table


def duration(seconds: float | None) -> str:
    """In seconds, or hours."""
    if seconds is None:
        return "–"
    return f"{seconds:,.0f} s" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def times(other: float | None, seconds: float | None) -> str:
    """How many times sooner."""
    return "–" if other is None or seconds is None else f"{other / seconds:.2f} ×"


def plot(everyone: Sequence[Learned], clocks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Validation loss of the first seed: against seconds for every ρ, and against megabytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes: Any
    count = len(clocks) + 1
    rows = math.ceil(count / 2)
    figure, axes = plt.subplots(
        rows, 2, figsize=(13, 4.5 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    panels = list(axes.flat)
    for axis, clock in zip(panels, clocks, strict=False):
        known = paces(clock)
        for number, each in enumerate(everyone):
            if each.method.name in known:
                curve = each.curves[0]
                draw(axis, curve.seconds(known[each.method.name]), curve.losses, each, number)
        axis.set(xlabel="seconds", title=f"ρ = {clock['measured_rho']:.1f} ({clock['rate']}/s)")
    for number, each in enumerate(everyone):
        draw(panels[len(clocks)], each.curves[0].megabytes, each.curves[0].losses, each, number)
    panels[len(clocks)].set(xlabel="MB sent by a rank", title="whatever the link")
    for axis in panels[count:]:
        axis.set_axis_off()
    target = everyone[0].targets[0]
    for axis in panels[:count]:
        lay_out(axis, target)
        axis.grid(alpha=0.25, which="both")
        axis.set_ylim(*span(everyone, target))
    for row in axes:
        row[0].set_ylabel("validation loss (nats)")
    handles, labels = panels[len(clocks)].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def lay_out(axis: Any, target: float) -> None:
    """A logarithmic axis of plain numbers, and a line at dense's last loss."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axhline(target, color="black", linestyle=":", linewidth=1, zorder=0)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def span(everyone: Sequence[Learned], target: float) -> tuple[float, float]:
    """What losses are drawn: those near the target."""
    lowest = min(min(each.curves[0].losses) for each in everyone)
    highest = max(max(each.curves[0].losses) for each in everyone)
    top = min(highest, target + ABOVE)
    low = min(lowest, target)
    return low - 0.05 * (top - low), top


def draw(
    axis: Any, xs: Sequence[float], losses: Sequence[float], each: Learned, number: int
) -> None:
    """One curve: dense is black, and what PyTorch brings along is dashed."""
    import matplotlib

    name = each.method.name
    built_in = name.startswith(("fp16", "powersgd", "post-local"))
    color = "black" if name == DENSE.name else matplotlib.colormaps["tab20"](number % 20)
    style = "--" if built_in else "-"
    width = 2.2 if name == DENSE.name else 1.4
    axis.plot(xs, losses, style, color=color, linewidth=width, label=name, marker=".", markersize=3)
