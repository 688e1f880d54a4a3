"""What every method learns, step by step: trainings on this machine, where no link is slow."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from race_methods import METHODS, PERIOD, RATES, Method

TRAIN = Path(__file__).parent.parent / "examples" / "train.py"
RANKS = 4
NEAR = 0.002  # nats above dense's loss that count as reached: a half of what seeds differ by
LONGER = (1.1, 1.25, 1.5, 2.0)  # budgets, in dense's steps, of those that end above the target
MOST_POINTS = 12  # of a learning curve
DENSE = METHODS["dense"]


@dataclass(frozen=True)
class Race:
    """What is raced, as `FOLDER/race.json` has it.

    Args:
        task: of `examples/train.py`.
        steps: dense's, and everyone's at first.
        methods: by name.
        seeds: of weights and batches; learning rates are tuned on the first.
        target: loss to reach; None for dense's last of the same seed, or `NEAR` it.
    """

    task: str
    steps: int
    methods: list[str]
    seeds: list[int]
    target: float | None

    @property
    def racers(self) -> list[Method]:
        """Dense first."""
        return [METHODS[name] for name in dict.fromkeys([DENSE.name, *self.methods])]

    def save(self, folder: Path) -> None:
        """Write it down.

        Raises:
            ValueError: the folder is another task's, or of other steps.
        """
        file = folder / "race.json"
        if file.exists():
            there = Race.load(folder)
            if (there.task, there.steps) != (self.task, self.steps):
                raise ValueError(
                    f"{folder} is of --task {there.task} --steps {there.steps}, got {self.task} "
                    f"and {self.steps}: race in another folder"
                )
        write_whole(file, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Race":
        """What `save` wrote.

        Raises:
            ValueError: nothing did.
        """
        file = folder / "race.json"
        if not file.is_file():
            raise ValueError(f"{folder} holds no race: begin with `race.py learn {folder}`")
        return cls(**read(file))


@dataclass(frozen=True)
class Run:
    """One training."""

    method: Method
    lr: float
    seed: int
    steps: int

    def file(self, folder: Path) -> Path:
        name = f"{self.method.name}-lr{self.lr}-seed{self.seed}-{self.steps}.json"
        return folder / "learn" / name

    def words(self, task: str) -> list[str]:
        """Arguments of `examples/train.py`."""
        return [
            *self.method.options.split(),
            *("--task", task, "--lr", str(self.lr), "--seed", str(self.seed)),
            *("--steps", str(self.steps)),
            *("--warmup-steps", str(self.method.warmup_steps(self.steps))),
            *("--evaluations", str(evaluations(self.steps))),
        ]


Losses = Mapping[Run, float]  # the last, of runs that are done; infinite where one failed


def evaluations(steps: int) -> int:
    """As many as are allowed and fall on the end of a period, when ranks have the same weights."""
    return next((n for n in range(MOST_POINTS, 0, -1) if steps % (n * PERIOD) == 0), 1)


def tries(race: Race, method: Method) -> list[Run]:
    """One for each learning rate."""
    return [Run(method, lr, race.seeds[0], race.steps) for lr in RATES[race.task]]


def best_rate(race: Race, method: Method, losses: Losses) -> float | None:
    """The learning rate of the lowest loss; None where no run was good."""
    done = [run for run in tries(race, method) if losses.get(run, math.inf) < math.inf]
    return min(done, key=lambda run: losses[run]).lr if done else None


def target_of(race: Race, seed: int, losses: Losses) -> float | None:
    """The loss to reach; None where dense's is not known yet."""
    if race.target is not None:
        return race.target
    rate = best_rate(race, DENSE, losses)
    last = None if rate is None else losses.get(Run(DENSE, rate, seed, race.steps))
    return None if last is None else last + NEAR


def budgets(race: Race, method: Method, seed: int, losses: Losses) -> list[Run]:
    """Runs at the best learning rate, ever longer, up to the first that reaches the target.

    The last of them may not be done yet.
    """
    rate, target = best_rate(race, method, losses), target_of(race, seed, losses)
    if rate is None or target is None:
        return []
    lengths = [race.steps, *(whole_periods(race.steps * factor) for factor in LONGER)]
    runs = [Run(method, rate, seed, steps) for steps in lengths]
    last = next((i for i, run in enumerate(runs) if not losses.get(run, -1) > target), len(runs))
    return runs[: last + 1]


def whole_periods(steps: float) -> int:
    return round(steps / PERIOD) * PERIOD


def due(race: Race, losses: Losses) -> list[Run]:
    """What can be run now; nothing when all is done.

    All learning rates first, then the best on further seeds, then longer runs where one is needed.
    """
    stages = [
        [run for method in race.racers for run in tries(race, method)],
        [
            Run(method, rate, seed, race.steps)
            for method in race.racers
            for seed in race.seeds
            if (rate := best_rate(race, method, losses)) is not None
        ],
        [
            run
            for method in race.racers
            for seed in race.seeds
            for run in budgets(race, method, seed, losses)
        ],
    ]
    for stage in stages:
        missing = [run for run in stage if run not in losses]
        if missing:
            return missing
    return []


def losses_in(race: Race, folder: Path) -> dict[Run, float]:
    """Of all runs whose results lie there."""
    runs = [
        Run(method, lr, seed, steps)
        for method in race.racers
        for lr in RATES[race.task]
        for seed in race.seeds
        for steps in (race.steps, *(whole_periods(race.steps * factor) for factor in LONGER))
    ]
    found = {run: loss_in(run.file(folder)) for run in runs}
    return {run: loss for run, loss in found.items() if loss is not None}


def loss_in(file: Path) -> float | None:
    """The last validation loss; infinite where the run failed, None where there was none."""
    if file.with_suffix(".failed").exists():
        return math.inf
    if not file.exists():
        return None
    loss: float = read(file)["results"]["validation_loss"]
    return loss if math.isfinite(loss) else math.inf


def learn(race: Race, folder: Path) -> list[Run]:
    """Make all runs that are missing.

    Returns:
        Those that failed. What they said stands beside the others' results.
    """
    (folder / "learn").mkdir(exist_ok=True)
    losses = losses_in(race, folder)
    first = True
    while runs := due(race, losses):
        if first:
            announce(race, losses)
        for run in tqdm(runs, unit="run", desc="learn"):
            begin = time.monotonic()
            losses[run] = make(run, race.task, folder)
            if first:
                print(f"\nthe first took {time.monotonic() - begin:.0f} s", flush=True)
            first = False
    return [run for run, loss in losses.items() if run.file(folder).with_suffix(".failed").exists()]


def announce(race: Race, losses: Losses) -> None:
    """How much there is to do."""
    plain = sum(len(tries(race, method)) + len(race.seeds) - 1 for method in race.racers)
    longer = (len(race.racers) - 1) * len(race.seeds)
    print(
        f"{plain} runs of {race.steps} steps, {min(len(losses), plain)} of them done; then up to "
        f"{len(LONGER) * longer} longer ones, which together take as much as "
        f"{sum(LONGER) * longer:.0f}",
        flush=True,
    )


def make(run: Run, task: str, folder: Path) -> float:
    """One training; a file of its own name holds what came of it."""
    while (folder / "pause").exists():  # someone else needs a quiet machine
        time.sleep(2)
    file = run.file(folder)
    part, log = file.with_suffix(".part"), file.with_suffix(".log")
    with log.open("wb") as said:
        done = subprocess.run(
            [sys.executable, *training(run, task), "--json", str(part)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        log.rename(file.with_suffix(".failed"))
        return math.inf
    part.rename(file)
    log.unlink()
    loss = loss_in(file)
    assert loss is not None
    return loss


def training(run: Run, task: str) -> list[str]:
    """Arguments of Python that train on this machine."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
    return [*torchrun, str(TRAIN), *run.words(task)]


def read(file: Path) -> dict[str, Any]:
    """Figures that lie in a file."""
    figures: dict[str, Any] = json.loads(file.read_text())
    return figures


def write_whole(file: Path, figures: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(figures, indent=2) + "\n")
    part.rename(file)
