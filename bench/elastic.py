"""A rank is killed at a random step; the job must go on and end as if nothing had happened.

    python bench/elastic.py --trials 20
    python bench/elastic.py --trials 5 --ranks 2 --recipe stc

Each trial starts torchrun on `examples/train.py` with handwritten digits and checkpoints, waits for
a random step and sends SIGKILL to a random rank. The job recovered if it ends within the limit with
exit code 0, and its parameters on every rank and its losses are bit for bit those of a run that
nobody disturbed. Linux: ranks are found in /proc.
"""

import argparse
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

TRAIN = Path(__file__).parent.parent / "examples" / "train.py"
STEPS = 100
CHECKPOINT_EVERY = 5
LATEST_KILL = 85  # the progress bar is a few steps late
PROGRESS = re.compile(rb"(\d+)/%d \[" % STEPS)


@dataclass(frozen=True)
class Run:
    """How a job went.

    Args:
        code: of its end; None where it did not end in time.
        seen: the steps that its progress bar showed, from the kill on.
        seconds: from start to end.
    """

    code: int | None
    seen: list[int]
    seconds: float


def main() -> None:
    """One undisturbed run, then the trials."""
    args = parse_args()
    draw = random.Random(args.seed)
    recoveries = 0
    print = Console(highlight=False).print
    with tempfile.TemporaryDirectory() as name:
        calm = Path(name, "calm")
        run = train(args, calm, None)
        if run.code != 0:
            sys.exit(f"the undisturbed run ended with code {run.code}")
        print(f"undisturbed: loss {losses(calm)[-1]:.6f}, {run.seconds:.0f} s")
        for trial in range(1, args.trials + 1):
            rank, step = draw.randrange(args.ranks), draw.randint(1, LATEST_KILL)
            folder = Path(name, f"trial-{trial}")
            run = train(args, folder, (rank, step))
            fault = judge(run, folder, calm, args.ranks)
            recoveries += not fault
            seen = f"rank {rank} killed at step {run.seen[0]}" if run.seen else "nobody killed"
            back = f", back at {min(run.seen[1:])}" if run.seen[1:] else ""
            print(f"trial {trial}: {seen}{back}, {run.seconds:.0f} s: {fault or 'same bits'}")
    print(f"recoveries: {recoveries}/{args.trials}")
    sys.exit(recoveries < args.trials)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--trials", type=int, default=20, help="(default: 20)")
    add("--ranks", type=int, default=4, help="(default: 4)")
    add("--recipe", default="topk", help="(default: topk)")
    add("--limit", type=float, default=300, help="seconds of one job (default: 300)")
    add("--seed", type=int, default=0, help="of ranks and steps (default: 0)")
    return parser.parse_args()


def train(args: argparse.Namespace, folder: Path, kill: tuple[int, int] | None) -> Run:
    """Run a job to its end, and kill a rank at a step."""
    folder.mkdir()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=3"),
        *(f"--nproc_per_node={args.ranks}", str(TRAIN), "--task=image", f"--recipe={args.recipe}"),
        *(f"--steps={STEPS}", f"--checkpoint={folder}", f"--checkpoint-every={CHECKPOINT_EVERY}"),
        f"--json={folder}/report.json",
    ]
    # Else ranks that start again may find the addresses of dead ones (pytorch/pytorch#135712).
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment = os.environ | own_store | {"OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    job = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    seen: list[int] = []
    try:
        for step in steps_shown(job, begin + args.limit):
            if seen:
                seen.append(step)
            elif kill and step >= kill[1]:
                os.kill(workers(job.pid)[kill[0]], signal.SIGKILL)
                seen.append(step)
        code: int | None = job.wait(max(0.0, begin + args.limit - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        code = None
    finally:
        end(job)
    return Run(code, seen, time.monotonic() - begin)


def steps_shown(job: "subprocess.Popen[bytes]", deadline: float) -> Iterator[int]:
    """The steps on the progress bar, as they come."""
    assert job.stderr
    rest = b""
    while True:
        if not select.select([job.stderr], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        data = os.read(job.stderr.fileno(), 65536)
        if not data:
            return
        found = list(PROGRESS.finditer(rest + data))
        rest = (rest + data)[found[-1].end() if found else 0 :][-100:]
        yield from (int(each[1]) for each in found)


def workers(agent: int) -> dict[int, int]:
    """The processes that torchrun has started, by rank."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    pids = {}
    for pid in map(int, children):
        rank = re.search(rb"\0RANK=(\d+)\0", b"\0" + Path(f"/proc/{pid}/environ").read_bytes())
        if rank:
            pids[int(rank[1])] = pid
    return pids


def end(job: "subprocess.Popen[bytes]") -> None:
    """Leave no process behind."""
    if job.poll() is None:
        for pid in (*workers(job.pid).values(), job.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.wait()


def judge(run: Run, folder: Path, calm: Path, ranks: int) -> str:
    """What is wrong with a run; nothing where it recovered."""
    if not run.seen:
        return "ended before the kill"
    if run.code is None:
        return "hangs"
    if run.code:
        return f"exit code {run.code}"
    ours, theirs = losses(folder), losses(calm)
    if ours != theirs:
        return f"loss {ours[-1]}, expected {theirs[-1]}"
    if any(differ(parameters(folder, r), parameters(calm, r)) for r in range(ranks)):
        return "other parameters"
    return ""


def losses(folder: Path) -> list[float]:
    """Training and validation losses, point by point; the last is the final validation loss."""
    history = json.loads((folder / "report.json").read_text())["history"]
    return [point[name] for point in history for name in ("train_loss", "validation_loss")]


def parameters(folder: Path, rank: int) -> dict[str, Any]:
    """Of the last checkpoint."""
    saved = folder / (folder / "latest").read_text() / f"rank-{rank}.pt"
    found: dict[str, Any] = torch.load(saved, weights_only=True)["model"]
    return found


def differ(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() != other.keys() or any(not torch.equal(one[n], other[n]) for n in one)


if __name__ == "__main__":
    main()
