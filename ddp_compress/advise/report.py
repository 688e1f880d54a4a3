"""Advice as tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ddp_compress.advise.advice import UNCOMPRESSED
from ddp_compress.advise.extras import rich
from ddp_compress.advise.link import rate_text
from ddp_compress.advise.outlook import Outlook, Setting

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ddp_compress.advise.advice import Advice

WIDTH = 132  # of text that no terminal limits


def show(advice: Advice) -> None:
    """Print everything."""
    _print(advice, rich().console.Console())


def as_text(advice: Advice) -> str:
    """Everything, as text."""
    console = rich().console.Console(width=WIDTH, no_color=True)
    with console.capture() as captured:
        _print(advice, console)
    return str(captured.get())


def _print(advice: Advice, console: Console) -> None:
    for table in (_here(advice), _with_more_ranks(advice)):
        console.print(table)
    for each in advice.sorted:
        console.print(f"  {each.name}: {each.what}", highlight=False)
    console.print(f"\n{_left_out(advice)}", highlight=False)
    console.print(f"\n[bold]{advice.verdict}[/bold]", highlight=False)


def _here(advice: Advice) -> Table:
    """Step time, bytes and memory in the setting of here."""
    workload, here = advice.workload, advice.here
    known = "measured" if advice.is_measured else "assumed"
    inside = f"; inside a host: {advice.inside}" if advice.inside else ""
    table = rich().table.Table(
        title=f"{workload.numel / 1e6:,.1f} M parameters, {here.ranks} ranks, "
        f"{_ms(workload.step)} ms a step without an exchange",
        caption=f"the link of a rank, {known}: {here.link}{inside}. ×: times as fast as dense. "
        "pays below: the link rate up to which it is quicker than dense and 16 bits",
    )
    table.add_column("", no_wrap=True)
    for name in ("step\nms", "\n×", "exchange\nms", "\n±", "sent\nMB", "kept\nMB", "pays\nbelow"):
        table.add_column(name, justify="right", no_wrap=True)
    dense = advice.step(advice.dense)
    for each in advice.sorted:
        step = advice.step(each)
        table.add_row(
            each.name,
            _ms(step),
            f"{dense / step:.2f}",
            _ms(each.exchange()),
            _ms(each.spread) if each.measured is not None else "",
            f"{each.sent / 1e6:,.3g}",
            f"{each.kept / 1e6:,.3g}",
            _rate(advice, each),
            style="bold" if each is advice.sorted[0] else None,
        )
    return table


def _rate(advice: Advice, outlook: Outlook) -> str:
    if outlook.name in UNCOMPRESSED:
        return ""
    rate = advice.break_even(outlook)
    return "never" if rate is None else "any rate" if rate == math.inf else rate_text(rate)


def _with_more_ranks(advice: Advice) -> Table:
    """Step time against the number of ranks, by the same links."""
    table = rich().table.Table(
        title="milliseconds a step, with more ranks",
        caption="computed: work measured among as many messages, and the same link for every rank; "
        "–: too much work to measure",
    )
    table.add_column("")
    numbers = list(advice.dense.costs)
    for ranks in numbers:
        table.add_column(str(ranks), justify="right")
    for each in advice.sorted:
        table.add_row(each.name, *(_among(advice, each, ranks) for ranks in numbers))
    return table


def _among(advice: Advice, outlook: Outlook, ranks: int) -> str:
    if ranks not in outlook.costs:
        return "–"
    return _ms(outlook.step(advice.workload, Setting(ranks, advice.here.link)))


def _left_out(advice: Advice) -> str:
    """What the figures do not say."""
    shares = [each.share for each in advice.outlooks if each.share < 1]
    sampled = (
        f" Some methods ran on a sample of the model ({min(shares):.0%} at least) and were scaled."
        if shares and advice.is_measured
        else ""
    )
    how = (
        "Exchanges ran here, with made-up gradients; ± is half the distance between quartiles."
        if advice.is_measured
        else "Nothing was sent: work was measured on this machine, the link is an assumption."
    )
    overlap = (
        " Backward is taken for two thirds of the step; on a GPU the host is idle in it, else busy."
        if advice.workload.step
        else " No step time was given, so nothing is hidden behind backward: give --step."
    )
    return (
        f"{how}{sampled}{overlap} Left out: what a method costs in accuracy (it may need more "
        "steps, or another learning rate), density warm-ups, and other traffic on the link. "
        f"This took {advice.seconds:.0f} s."
    )


def _ms(seconds: float) -> str:
    milliseconds = 1e3 * seconds
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
