"""The pictures of docs/results.md and README, drawn from the figures in docs/figures.

    python bench/plots.py                      # docs/race.png, docs/figures/*.png
    python bench/plots.py --race runs/lm       # first take the race's curves from its folder

Figures are those of bench/RESULTS.md, which says how each was measured; a test holds them together.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from race import clocks_in
from race_figures import lay_out
from race_join import learned, paces, seconds_to_target
from race_learn import Race

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "figures"
RACERS = ("dense", "fp16", "powersgd-4", "topk-1%", "dgc-1%", "sbc-1%")
STYLES: dict[str, dict[str, Any]] = {
    "dense": {"color": "black", "linewidth": 2.4},
    "fp16": {"color": "tab:blue", "linestyle": "--"},
    "powersgd-4": {"color": "tab:green", "linestyle": "--"},
    "topk-1%": {"color": "tab:orange"},
    "dgc-1%": {"color": "tab:purple", "linewidth": 2.4},
    "sbc-1%": {"color": "tab:red"},
}


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--race", type=Path, metavar="FOLDER", help="of bench/race.py")
    options = parser.parse_args()
    if options.race:
        file = FIGURES / "race.json"
        text = json.dumps(take_race(options.race), indent=1, ensure_ascii=False)
        one_line = re.sub(r"\[[^\[\]]*\]", lambda numbers: " ".join(numbers[0].split()), text)
        file.write_text(f"{one_line}\n")
    drawings: dict[str, tuple[Path, Callable[[Any], Any]]] = {
        "race": (DOCS / "race.png", draw_race),
        "loss": (FIGURES / "loss.png", draw_loss),
        "links": (FIGURES / "links.png", draw_links),
        "ranks": (FIGURES / "ranks.png", draw_ranks),
    }
    plt.rcParams.update({"font.size": 11, "axes.grid": True, "grid.alpha": 0.25})
    for name, (path, draw) in drawings.items():
        figure = draw(json.loads((FIGURES / f"{name}.json").read_text()))
        save(figure, path)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def save(figure: Any, path: Path) -> None:
    """As a PNG of few colours, which is a third of the bytes."""
    figure.savefig(path, dpi=100)
    plt.close(figure)
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(64)
    few.save(path, optimize=True)


def take_race(folder: Path) -> dict[str, Any]:
    """The curves of a race: loss at every evaluation, and its seconds over every link."""
    everyone = [each for each in learned(Race.load(folder), folder) if each.method.name in RACERS]
    clocks = clocks_in(folder)
    return {
        "section": "The race",
        "command": "python bench/race.py learn, clock; python bench/plots.py --race FOLDER",
        "what": "language model, four ranks, seed 0; links by their rate: ρ, seconds to the target",
        "target": everyone[0].targets[0],
        "curves": {
            each.method.name: {
                "lr": each.lr,
                "losses": [round(loss, 4) for loss in each.curves[0].losses],
                "seconds": {
                    clock["rate"]: [
                        round(s, 2) for s in each.curves[0].seconds(paces(clock)[each.method.name])
                    ]
                    for clock in clocks
                },
            }
            for each in everyone
        },
        "links": {
            clock["rate"]: {
                "ρ": round(clock["measured_rho"], 2),
                "to the target": {
                    name: seconds and round(seconds, 2)
                    for name, seconds in seconds_to_target(everyone, clock).items()
                },
            }
            for clock in clocks
        },
    }


def draw_race(race: Any) -> Any:
    """Loss against seconds, a panel for every link."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.6), sharey=True, layout="constrained")
    for axis, (rate, link) in zip(panels, race["links"].items(), strict=True):
        for name, curve in race["curves"].items():
            axis.plot(curve["seconds"][rate], curve["losses"], label=name, **STYLES[name])
        lay_out(axis, race["target"])
        axis.set(xlabel="seconds", ylim=(1.36, 2.3))
        axis.set_title(f"a dense exchange takes {link['ρ']:.2g} × the computation", fontsize=11)
        mark_gain(axis, race, rate)
    panels[0].set_ylabel("validation loss (nats)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def mark_gain(axis: Any, race: Any, rate: str) -> None:
    """How much sooner the winner came to dense's last loss."""
    seconds = race["links"][rate]["to the target"]
    first, last = seconds["dgc-1%"], seconds["dense"]
    arrow = {"arrowstyle": "<->", "color": "tab:purple", "linewidth": 1.6}
    axis.annotate("", (first, 1.44), (last, 1.44), arrowprops=arrow)
    words = f"dgc {last / first:.1f} × sooner"
    axis.text(
        (first * last) ** 0.5, 1.38, words, ha="center", color="tab:purple", fontweight="bold"
    )


def draw_loss(found: Any) -> Any:
    """What is lost against what is sent."""
    dense = found["dense bytes"] / 1e3
    figure, axis = plt.subplots(figsize=(9, 5.4), layout="constrained")
    for kind, marker in (("every step", "o"), ("rounds", "s")):
        kB = [dense / each["ratio"] for each in found[kind].values()]
        above = [sum(each["above"]) / len(each["above"]) for each in found[kind].values()]
        axis.plot(kB, above, marker, markersize=8, label=f"{kind}")
        for name, x, y in zip(found[kind], kB, above, strict=True):
            below = name in ("dgc 1 %", "majority_vote 1 %, every 4")
            offset = (8, -13) if below else (8, 3)
            axis.annotate(name, (x, y), xytext=offset, textcoords="offset points", fontsize=9.5)
    axis.plot(dense, 0, "*", color="black", markersize=13, label="dense")
    axis.set(xscale="log", xlim=(1, 9000), ylim=(-0.004, 0.085))
    axis.set_xlabel("kB that a rank encodes a step, in the mean of the whole run")
    axis.set_ylabel("final loss above dense (nats)")
    axis.set_title("byte language model, 1.12 M parameters, 2400 steps, four ranks", fontsize=11)
    axis.legend()
    return figure


def draw_links(found: Any) -> Any:
    """Step time against link rate, as measured."""
    figure, axis = plt.subplots(figsize=(8.5, 5.2), layout="constrained")
    places = range(len(found["rates"]))
    for name, ms in found["ms"].items():
        style: dict[str, Any] = {"color": "black"} if name.startswith(("dense", "fp16")) else {}
        line = "--" if name.startswith("fp16") else "-"
        axis.plot(places, ms, line, marker="o", label=name, **style)
    axis.set_xticks(places, found["rates"])
    axis.set(yscale="log", ylabel="ms a step, no computation", xlabel="link of a host")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.set_title("11.2 M parameters, four hosts on two cores", fontsize=11)
    axis.legend()
    return figure


def draw_ranks(found: Any) -> Any:
    """Megabytes a step against the number of ranks: measured, and as the formulas go on."""
    figure, axis = plt.subplots(figsize=(8.5, 5.2), layout="constrained")
    many = [2**n for n in range(1, 11)]
    axis.plot(many, [80 * (w - 1) / w for w in many], "k-", linewidth=2.2, label="dense ring *")
    for name, words in found["words"].items():
        line = "--" if name.endswith("sharded") else "-"  # the vote lies upon it
        axis.plot(found["ranks"], [0.4 * each for each in words], line, marker="o", label=name)
    first = found["words"]["topk, all-gather"][0]
    axis.plot(many[4:], [0.4 * first * (w - 1) for w in many[4:]], ":", color="tab:blue")
    axis.set(xscale="log", yscale="log", xlabel="ranks", ylabel="MB that a rank sends a step")
    axis.set_xticks(many, map(str, many))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.set_title("10 M parameters at 1 %; * and dotted: computed", fontsize=11)
    axis.legend()
    return figure


if __name__ == "__main__":
    main()
