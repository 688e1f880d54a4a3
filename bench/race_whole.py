"""One whole training over slow links: its seconds beside those that were put together."""

import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table
from tqdm import tqdm

from agents import Agents
from links import parse_rate
from links_hosts import RankError
from netlab import Lab
from race_join import paces
from race_learn import RANKS, TRAIN, Run, read


def train(run: Run, task: str, hosts: Lab, rate: str, folder: Path, limit: int) -> dict[str, Any]:
    """Train on the hosts, one rank each, at a link rate; a result that lies there is taken.

    Raises:
        RankError: the training failed, or took too long.
    """
    file = folder / f"whole-{rate}-{run.file(folder).name}"
    if file.exists():
        return read(file)
    hosts.shape(parse_rate(rate))
    part = file.with_suffix(".part")
    options = [f"--nnodes={RANKS}", "--nproc_per_node=1", "--rdzv-backend=c10d", "--rdzv-id=race"]
    script = [str(TRAIN), *run.words(task), "--json", str(part)]
    with tempfile.TemporaryDirectory() as names:
        job = Agents(RANKS, hosts, options, script, Path(names))
        follow(job, run, limit)
    part.rename(file)
    return read(file)


def follow(job: Agents, run: Run, limit: int) -> None:
    """Wait for the end of a training, which must be good."""
    try:
        with tqdm(total=run.steps, unit="step", desc=run.method.name) as bar:
            for step in job.steps(time.monotonic() + limit):
                bar.update(step - bar.n)
    except TimeoutError:
        raise RankError(f"not done after {limit} s (--limit): killed") from None
    finally:
        codes = job.codes()
        job.end()
    if any(codes):
        raise RankError(f"{job.said.decode(errors='replace')}\nexit codes {codes}")


def render(run: Run, clock: dict[str, Any], whole: dict[str, Any], alone: dict[str, Any]) -> Table:
    """What was predicted, and what came.

    Args:
        run: that was made twice.
        clock: at the links' rate.
        whole: over the links.
        alone: without them.
    """
    name = run.method.name
    predicted = paces(clock)[name].seconds(run.steps, run.method.warmup_steps(run.steps))
    took = whole["history"][-1]["seconds"]
    table = Table(title=f"{name}, {run.steps} steps at {clock['rate']}/s")
    for heading in ("", "put together", "over the links", "ratio"):
        table.add_column(heading, justify="right")
    table.add_row("seconds", f"{predicted:.1f}", f"{took:.1f}", f"{took / predicted:.3f}")
    losses = [each["results"]["validation_loss"] for each in (alone, whole)]
    if losses[0] != losses[1]:
        raise RankError(f"{name}: the losses differ, {losses[0]!r} alone and {losses[1]!r}")
    table.add_row("final loss", *(f"{loss:.6f}" for loss in losses), f"{losses[1] / losses[0]:.6f}")
    return table
