"""Who reaches dense's final loss first, over slow links.

    python bench/race.py learn runs/race --task lm --seeds 0 1       # hours; it says how many
    sudo python bench/race.py clock runs/race --rho 0.3 5 15         # minutes
    python bench/race.py draw runs/race                              # tables, and race.png
    sudo python bench/race.py whole runs/race topk-1% --rho 5        # one of them in one piece

What a step does to the loss does not depend on the link, and how long a step takes does not depend
on the loss. So the two are measured apart, and joined. Each stage leaves its results in the folder,
makes none again, and goes on where it was killed.

* learn: every method (`race_methods.py`) trains `examples/train.py` with four ranks on this
  machine, from the same weights and batches: with as many learning rates as all others on the first
  seed, then with the best of them on the further seeds. Who ends above the target, dense's last
  validation loss of the same seed and 0.002 nats, trains again with 1.1, 1.25, 1.5 and 2 times the
  steps, until it reaches it. While a file FOLDER/pause exists, no run is begun.
* clock: on four hosts (see `netlab.py`), one rank each, methods take turns, step by step, and train
  the same network on the same batches (`race_rank.py`). A warm-up is timed in the mean over 12 of
  its steps, or of its rounds 5, all else in the median over steps; local steps and their round
  count together.
* draw: the wall-clock of step k is the warm-up's seconds and those of the steps after it. When a
  curve reaches the target is interpolated between its evaluations. Evaluations take no time.
* whole: one training over the links, in one piece: its seconds beside those of `draw`, and its last
  loss, which must be the same to the bit.

What decides is ρ: seconds of a dense all-reduce over seconds of computation. A ResNet-50 on a
data-centre GPU has about 1.5 over 10 Gbit Ethernet and 15 over 1 Gbit. At most 1 + ρ can be won.
Here four ranks share this machine's cores; a step that exchanges nothing is timed first, and each
link rate follows: the one at which a ring's 2 · 3/4 · 4 bytes a parameter take ρ times as long. The
ρ that is printed is measured: an all-reduce on its own at that rate over the step without it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from links import at_least
from links_hosts import RankError
from netlab import LabError, exit_on_signals, lab
from output import show
from race_clock import clock
from race_figures import plot, render
from race_join import learned
from race_learn import RANKS, Race, Run, best_rate, learn, losses_in, read
from race_methods import METHODS, RATES
from race_whole import render as render_whole
from race_whole import train

STEPS = {"lm": 1800, "image": 600}


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    stage = {
        name: stages.add_parser(name, help=text)
        for name, text in {
            "learn": "train by every method, on this machine",
            "clock": "time every method's steps over slow links; needs root",
            "draw": "tables and a plot of both",
            "whole": "one training over slow links, in one piece; needs root",
        }.items()
    }
    for each in stage.values():
        each.add_argument("folder", type=Path, metavar="FOLDER")
    add = stage["learn"].add_argument
    add("--task", choices=list(RATES), default="lm", help="(default: lm)")
    add("--steps", type=at_least(1), help="of dense (default: lm 1800, image 600)")
    add(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        default=list(METHODS),
        metavar="NAME",
        help=f"(default: {' '.join(METHODS)})".replace("%", "%%"),
    )
    add("--seeds", nargs="+", type=at_least(0), default=[0], help="(default: 0)")
    add("--target", type=float, metavar="LOSS", help="(default: dense's last)")
    add = stage["clock"].add_argument
    add("--rho", nargs="+", type=positive, default=[0.3, 5.0, 15.0], help="(default: 0.3 5 15)")
    add("--units", type=at_least(1), default=12, help="steps or rounds timed (default: 12)")
    add = stage["whole"].add_argument
    add("method", choices=list(METHODS), metavar="METHOD")
    add("--rho", type=positive, required=True, help="one that `clock` was given")
    for name in ("clock", "whole"):
        stage[name].add_argument(
            "--limit", type=at_least(1), default=7200, help="seconds (default: 7200)"
        )
    return parser


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return number


def main() -> int:
    options = argument_parser().parse_args()
    exit_on_signals()
    stage = {"learn": do_learn, "clock": do_clock, "draw": do_draw, "whole": do_whole}
    try:
        return stage[options.stage](options)
    except (LabError, RankError, ValueError) as error:
        print(f"race.py: {error}", file=sys.stderr)
        return 1


def do_learn(options: argparse.Namespace) -> int:
    steps = options.steps or STEPS[options.task]
    race = Race(options.task, steps, options.methods, options.seeds, options.target)
    options.folder.mkdir(parents=True, exist_ok=True)
    race.save(options.folder)
    failed = [
        run.file(options.folder).with_suffix(".failed") for run in learn(race, options.folder)
    ]
    for file in failed:
        print(f"race.py: failed, its last words are in {file}; remove that to try again")
    return bool(failed)


def do_clock(options: argparse.Namespace) -> int:
    race = Race.load(options.folder)
    with lab(RANKS) as hosts:
        for rho in options.rho:
            found = clock(race, hosts, options.folder, rho, options.units, options.limit)
            print(f"ρ {rho:g}: {found['rate']}/s, measured {found['measured_rho']:.2f}")
    return 0


def do_draw(options: argparse.Namespace) -> int:
    everyone = learned(Race.load(options.folder), options.folder)
    clocks = clocks_in(options.folder)
    if not everyone or not clocks:
        raise ValueError(f"{options.folder} has nothing to draw: `learn` and `clock` come first")
    show(*(render(everyone, each) for each in clocks))
    plot(everyone, clocks, options.folder / "race.png")
    return 0


def do_whole(options: argparse.Namespace) -> int:
    race = Race.load(options.folder)
    method, losses = METHODS[options.method], losses_in(race, options.folder)
    rate = best_rate(race, method, losses)
    found = [each for each in clocks_in(options.folder) if each["rho"] == options.rho]
    if rate is None or not found or method.name not in found[0]["methods"]:
        raise ValueError(f"nothing to compare {method.name} with: `learn` and `clock` come first")
    run = Run(method, rate, race.seeds[0], race.steps)
    with lab(RANKS) as hosts:
        done = train(run, race.task, hosts, found[0]["rate"], options.folder, options.limit)
    show(render_whole(run, found[0], done, read(run.file(options.folder))))
    return 0


def clocks_in(folder: Path) -> list[dict[str, Any]]:
    """What `clock` found, by rising ρ."""
    return sorted(map(read, folder.glob("clock-*.json")), key=lambda each: float(each["rho"]))


if __name__ == "__main__":
    sys.exit(main())
