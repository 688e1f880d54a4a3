"""The drawings of docs/how_it_works.md.

python bench/drawings.py     # docs/figures/*.svg, the same bytes every time
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
BLUE, ORANGE, GREEN, RED, GREY = "#cfe2ff", "#ffe0b8", "#d2f0d2", "#f6cfcf", "#ebebeb"
GRADIENTS = (  # of three steps, eight parameters
    (0.9, -0.2, 0.4, -1.4, 0.1, 0.5, -0.3, 0.2),
    (0.3, -0.3, 0.5, -0.2, 0.1, 0.3, -0.4, 0.9),
    (0.2, -0.2, 0.4, -0.3, 0.2, 0.5, -0.3, 0.1),
)
SENT = 2


def main() -> None:
    """Draw all of them."""
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "ddp_compress"})
    for draw in (way_of_a_gradient, error_feedback, two_levels, transaction):
        path = FIGURES / f"{draw.__name__}.svg"
        figure = draw()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """An empty sheet, a unit an inch."""
    figure = plt.figure(figsize=(width, height), facecolor="white")
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    return figure, axis


def box(
    axis: Any, x: float, y: float, words: str, color: str = BLUE, width: float = 1.5, h: float = 0.7
) -> None:
    """Words in a box around (x, y)."""
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=0.08",
        "facecolor": color,
        "edgecolor": "#444",
    }
    corner = x - width / 2, y - h / 2
    axis.add_patch(matplotlib.patches.FancyBboxPatch(corner, width, h, **style))
    axis.text(x, y, words, ha="center", va="center")


def arrow(
    axis: Any, start: tuple[float, float], end: tuple[float, float], style: str = "->", **more: Any
) -> None:
    props = {"arrowstyle": style, "color": "#333", "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=props | more)


def way_of_a_gradient() -> Any:
    figure, axis = canvas(10.5, 4.1)
    box(axis, 1.0, 3.2, "gradient\n(DDP's bucket)")
    box(axis, 1.0, 1.2, "residual\n(what was not sent)", ORANGE)
    box(axis, 3.1, 2.2, "accumulated\n= both added")
    box(axis, 5.0, 3.2, "select\nthe largest 1 %")
    box(axis, 6.9, 3.2, "encode\npositions, values")
    box(axis, 9.3, 3.2, "other ranks", GREY)
    box(axis, 9.3, 2.0, "decode\nall ranks' entries")
    box(axis, 6.9, 2.0, "mean\nover the ranks", GREEN)
    box(axis, 6.9, 0.7, "gradient for\nthe optimizer", GREEN)
    arrow(axis, (1.75, 3.1), (2.35, 2.45))
    arrow(axis, (1.75, 1.4), (2.35, 1.95))
    arrow(axis, (3.85, 2.45), (4.25, 2.95))
    arrow(axis, (5.75, 3.2), (6.15, 3.2))
    arrow(axis, (7.65, 3.2), (8.55, 3.2), "<->")
    axis.text(8.1, 3.32, "a few kB", ha="center", fontsize=9.5)
    arrow(axis, (9.3, 2.85), (9.3, 2.35))
    arrow(axis, (8.55, 2.0), (7.65, 2.0))
    arrow(axis, (6.9, 1.65), (6.9, 1.05))
    arrow(axis, (3.1, 1.85), (1.75, 1.0), connectionstyle="angle3,angleA=90,angleB=0")
    axis.text(3.2, 0.9, "commit: accumulated − sent\nstays here", ha="left", fontsize=9.5)
    return figure


def error_feedback() -> Any:
    """Three steps with numbers: what is kept is sent later."""
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 4.2), sharex=True, sharey=True)
    figure.set_layout_engine("constrained")
    residual = [0.0] * 8
    for number, gradient in enumerate(GRADIENTS):
        accumulated = [r + g for r, g in zip(residual, gradient, strict=True)]
        chosen = sorted(range(8), key=lambda i, a=accumulated: -abs(a[i]))[:SENT]  # type: ignore[misc]
        residual_now = [0.0 if i in chosen else a for i, a in enumerate(accumulated)]
        above, below = axes[0][number], axes[1][number]
        above.bar(range(8), residual, color="#ffb75e", label="residual, from before")
        colors = ["#3f7fd9" if i in chosen else "#b5d0f2" for i in range(8)]
        above.bar(range(8), gradient, bottom=residual, color=colors)
        above.bar(range(8), residual, color="#ffb75e")
        for i in chosen:
            place = accumulated[i] + (0.1 if accumulated[i] > 0 else -0.35)
            above.text(i, place, "sent", ha="center", fontsize=9, fontweight="bold")
        below.bar(range(8), residual_now, color="#ffb75e")
        above.set_title(f"step {number + 1}", fontsize=11)
        residual = residual_now
    axes[0][0].set(ylabel="residual + gradient", ylim=(-2, 2))
    axes[1][0].set_ylabel("residual after it")
    for axis in axes.flat:
        axis.axhline(0, color="#444", linewidth=0.8)
        axis.set_xticks(range(8), [f"p{i}" for i in range(8)], fontsize=9)
    return figure


def two_levels() -> Any:
    figure, axis = canvas(10.5, 4.4)
    for node, left in enumerate((0.4, 6.1)):
        frame = matplotlib.patches.Rectangle((left, 0.35), 4, 3.7, facecolor="none", edgecolor=GREY)
        frame.set(edgecolor="#888", linestyle="--")
        axis.add_patch(frame)
        axis.text(left + 2, 3.82, f"node {node}", ha="center", fontweight="bold")
        for gpu in range(2):
            x = left + 1 + 2 * gpu
            box(axis, x, 3.2, f"GPU {gpu}\ngradient")
            box(
                axis,
                x,
                1.4,
                f"mean of the node,\nslice {gpu} of 2,\nand its residual",
                GREEN,
                1.7,
                0.8,
            )
            arrow(axis, (x, 2.85), (x, 1.8))
        arrow(axis, (left + 1.2, 2.85), (left + 2.8, 1.8))
        arrow(axis, (left + 2.8, 2.85), (left + 1.2, 1.8))
        axis.text(left + 0.95, 2.3, "dense,\nfast links", ha="right", fontsize=9.5, color="#2a7")
    for gpu, (height, bend) in enumerate(((1.6, -0.28), (1.2, 0.28))):
        start, end = 2.25 + 2 * gpu, 6.25 + 2 * gpu
        line = {"color": "#c33", "linewidth": 2, "connectionstyle": f"arc3,rad={bend}"}
        arrow(axis, (start, height), (end, height), "<->", **line)
    axis.text(5.25, 1.3, "compressed,\nslow link", ha="center", fontsize=9.5, color="#c33")
    return figure


def transaction() -> Any:
    figure, axis = canvas(10.5, 3.6)
    for rank in range(3):
        y = 2.9 - 0.95 * rank
        axis.text(0.15, y, f"rank {rank}", va="center", fontweight="bold")
        box(axis, 1.75, y, "message 1", BLUE, 1.2, 0.5)
        box(axis, 3.15, y, "message 2", BLUE, 1.2, 0.5)
        box(axis, 4.55, y, "message 3", BLUE, 1.2, 0.5)
        arrow(axis, (5.15, y), (5.75, y))
    axis.text(3.15, 3.38, "backward pass: memory is only read", ha="center", fontsize=9.5)
    box(axis, 6.35, 1.95, "has every\nmessage of\nevery rank\narrived\nwhole?", GREY, 1.2, 2.6)
    ends = (
        (2.9, "yes", "commit: residuals, gradients\nare written, on every rank", GREEN),
        (1.95, "NaN or inf on any", "abort: memory as before,\nall gradients are NaN", ORANGE),
        (1.0, "an error on any", "PeerError on every rank,\nmemory as before", RED),
    )
    for y, when, then, color in ends:
        arrow(axis, (6.95, y), (8.15, y))
        axis.text(7.5, y + 0.08, when, ha="center", fontsize=8.5)
        box(axis, 9.3, y, then, color, 2.3)
    return figure


if __name__ == "__main__":
    main()
