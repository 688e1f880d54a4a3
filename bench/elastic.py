"""A rank or a host is lost at a random step; the job must go on and end as if nothing had happened.

    python bench/elastic.py --trials 20                                  # ranks of one torchrun
    python bench/elastic.py --trials 5 --hosts 4 --ranks 1 --lose host   # the others go on
    python bench/elastic.py --trials 10 --hosts 2 --ranks 2 --within node  # over two levels
    sudo python bench/elastic.py --trials 3 --hosts 4 --ranks 1 --lab --lose rank host cable

Each trial trains `examples/train.py` on handwritten digits with checkpoints, waits for a random
step and strikes. What is lost, in turn:

* rank: one gets SIGKILL; torchrun starts all of them again. The job recovered if it ends within the
  limit with exit code 0, and its parameters on every rank and its losses are bit for bit those of a
  run that nobody disturbed.
* host: a torchrun and all its ranks get SIGKILL; those of the other hosts go on as fewer. The final
  validation loss must be that of the undisturbed run within noise.
* cable: the same, but a host falls silent, and the others must give it up.

The host that the others meet at, host 0, is never lost. With `--lab`, hosts are network namespaces
(see `netlab.py`).
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from agents import Agents
from netlab import Lab, LabError, exit_on_signals, lab

TRAIN = Path(__file__).parent.parent / "examples" / "train.py"
STEPS = 100
CHECKPOINT_EVERY = 5
LATEST_STRIKE = 85  # the progress bar is a few steps late
NOISE = 0.1  # nats; the standard deviation over four seeds is 0.13


@dataclass(frozen=True)
class Strike:
    """What is lost, and when.

    Args:
        what: "rank", "host" or "cable".
        number: which of them.
        step: of the progress bar.
    """

    what: str
    number: int
    step: int

    def fall(self, job: Agents) -> None:
        act = {"rank": job.kill_rank, "host": job.kill_host, "cable": job.cut_off}
        act[self.what](self.number)


@dataclass(frozen=True)
class Run:
    """How a job went.

    Args:
        codes: of the hosts' ends; None where one did not end in time.
        seen: the steps that the progress bar showed, from the strike on.
        seconds: from start to end.
        said: its last words.
    """

    codes: list[int | None]
    seen: list[int]
    seconds: float
    said: str


def main() -> None:
    """The undisturbed run, then the trials."""
    args = parse_args()
    exit_on_signals()
    try:
        with lab(args.hosts) if args.lab else nullcontext() as hosts:
            recoveries = trials(args, hosts)
    except LabError as error:
        sys.exit(f"elastic.py: {error}")
    sys.exit(recoveries < args.trials)


def trials(args: argparse.Namespace, hosts: Lab | None) -> int:
    """How many recovered."""
    print = Console(highlight=False, markup=False).print
    draw = random.Random(args.seed)
    recoveries = 0
    with tempfile.TemporaryDirectory() as name:
        calm = Path(name, "calm")
        run = train(args, hosts, calm, None)
        if any(run.codes):
            sys.exit(f"{run.said}\nthe undisturbed run ended with codes {run.codes}")
        print(f"undisturbed: loss {losses(calm)[-1]:.6f}, {run.seconds:.0f} s")
        for trial, lose in zip(range(1, args.trials + 1), itertools.cycle(args.lose)):
            among = range(args.hosts * args.ranks) if lose == "rank" else range(1, args.hosts)
            strike = Strike(lose, draw.choice(among), draw.randint(1, LATEST_STRIKE))
            folder = Path(name, f"trial-{trial}")
            run = train(args, hosts, folder, strike)
            fault = judge(run, folder, calm, exact=lose == "rank")
            recoveries += not fault
            seen = f"{lose} {strike.number} lost at step {run.seen[0]}" if run.seen else ""
            back = f", back at {min(run.seen[1:])}" if run.seen[1:] else ""
            end = fault or f"loss {losses(folder)[-1]:.6f}, {last(folder).name}"
            print(f"trial {trial}: {seen}{back}, {run.seconds:.0f} s: {end}")
            if fault:
                print(run.said)
    print(f"recoveries: {recoveries}/{args.trials}")
    return recoveries


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--trials", type=int, default=20, help="(default: 20)")
    add(
        "--lose",
        nargs="+",
        choices=["rank", "host", "cable"],
        default=["rank"],
        help="(default: rank)",
    )
    add("--hosts", type=int, default=1, help="torchruns (default: 1)")
    add("--ranks", type=int, default=4, help="of each host (default: 4)")
    add("--lab", action="store_true", help="hosts in network namespaces; needs root")
    add("--recipe", default="topk", help="(default: topk)")
    add("--within", choices=["node"], help="average dense inside a host")
    add("--shard", type=int, metavar="L", help="replicas of L ranks each")
    add("--limit", type=float, default=900, help="seconds of one job (default: 900)")
    add("--seed", type=int, default=0, help="of what is lost, and when (default: 0)")
    args = parser.parse_args()
    if args.lose != ["rank"] and args.hosts < 2:
        parser.error("--lose host and cable need --hosts 2 or more")
    if "cable" in args.lose and not args.lab:
        parser.error("--lose cable needs --lab")
    return args


def train(args: argparse.Namespace, hosts: Lab | None, folder: Path, strike: Strike | None) -> Run:
    """Run a job to its end, and strike at a step."""
    folder.mkdir()
    least = args.hosts if strike is None or strike.what == "rank" else 1
    options = [
        *(f"--nnodes={least}:{args.hosts}", f"--nproc_per_node={args.ranks}", "--max-restarts=3"),
        *("--rdzv-backend=c10d", "--rdzv-id=elastic"),
    ]
    script = [
        *(str(TRAIN), "--task=image", f"--recipe={args.recipe}"),
        *(f"--steps={STEPS}", f"--checkpoint={folder}", f"--checkpoint-every={CHECKPOINT_EVERY}"),
        f"--json={folder}/report.json",
        *([f"--within={args.within}"] if args.within else []),
        *([f"--shard={args.shard}"] if args.shard else []),
    ]
    begin = time.monotonic()
    job = Agents(args.hosts, hosts, options, script, folder)
    seen: list[int] = []
    try:
        for step in job.steps(begin + args.limit):
            if seen:
                seen.append(step)
            elif strike and step >= strike.step:
                strike.fall(job)
                seen.append(step)
    except TimeoutError:
        pass
    finally:
        codes = job.codes()
        job.end()
    return Run(codes, seen, time.monotonic() - begin, job.said.decode(errors="replace"))


def judge(run: Run, folder: Path, calm: Path, exact: bool) -> str:
    """What is wrong with a run; nothing where it recovered."""
    if not run.seen:
        return "ended before the strike"
    if None in run.codes:
        return "hangs"
    if any(run.codes):
        return f"exit codes {run.codes}"
    return other_bits(folder, calm) if exact else other_end(folder, calm)


def other_bits(folder: Path, calm: Path) -> str:
    """What differs from the undisturbed run."""
    if losses(folder) != losses(calm):
        return f"loss {losses(folder)[-1]}, expected {losses(calm)[-1]}"
    ours, theirs = sorted(last(folder).iterdir()), sorted(last(calm).iterdir())
    if last(folder).name != last(calm).name or any(map(differ, ours, theirs)):
        return "other parameters"
    return ""


def other_end(folder: Path, calm: Path) -> str:
    """Whether the loss is not the undisturbed run's, or nobody was missing in the end."""
    ours, theirs = losses(folder)[-1], losses(calm)[-1]
    if abs(ours - theirs) > NOISE:
        return f"loss {ours}, expected {theirs} within {NOISE}"
    return "as many ranks as before" if last(folder).name == last(calm).name else ""


def losses(folder: Path) -> list[float]:
    """Training and validation losses, point by point; the last is the final validation loss."""
    history = json.loads((folder / "report.json").read_text())["history"]
    return [point[name] for point in history for name in ("train_loss", "validation_loss")]


def last(folder: Path) -> Path:
    """The last checkpoint."""
    return folder / (folder / "latest").read_text()


def differ(one: Path, other: Path) -> bool:
    """Whether two ranks have other parameters."""
    ours, theirs = parameters(one), parameters(other)
    return ours.keys() != theirs.keys() or any(not torch.equal(ours[n], theirs[n]) for n in ours)


def parameters(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(file, weights_only=True)["model"]
    return found


if __name__ == "__main__":
    main()
