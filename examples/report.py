"""What a run showed: a table, a JSON file, a plot."""

import json
import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from traffic import Traffic, ring_all_reduce


@dataclass(frozen=True)
class Measurement:
    """One point of the training curve."""

    step: int
    train_loss: float  # mean over ranks and over the steps since the last point
    validation_loss: float
    accuracy: float
    sent_bytes: float  # by one rank, up to this step
    seconds: float  # of training, without validation, up to this step


NO_TRAFFIC = Traffic(0, 0, 0, 0)


@dataclass
class Journal:
    """What a training notes on its way; a part of its checkpoints."""

    history: list[Measurement] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)  # of this rank, since the last point
    scales: list[float] = field(default_factory=list)  # that losses were multiplied by
    warmup: Traffic = NO_TRAFFIC
    seconds: float = 0.0  # of training, without validation

    def add(self, point: Measurement) -> None:
        """Note a point of the training curve."""
        self.history.append(point)
        self.losses.clear()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        history = [asdict(point) for point in self.history]
        return vars(self) | {"history": history, "warmup": asdict(self.warmup)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        vars(self).update(saved)
        self.history = [Measurement(**point) for point in saved["history"]]
        self.warmup = Traffic(**saved["warmup"])


@dataclass(frozen=True)
class Report:
    """One finished run."""

    args: Namespace
    world_size: int
    elements: int
    journal: Journal
    whole_run: Traffic
    after_warmup: Traffic

    @property
    def steps_per_second(self) -> float:
        return self.whole_run.steps / self.journal.seconds

    @property
    def loss_scale(self) -> dict[str, float]:
        """How often the scale fell, because a gradient overflowed, and grew; the last one."""
        changes = [after - before for before, after in pairwise(self.journal.scales)]
        return {
            "overflows": sum(change < 0 for change in changes),
            "growths": sum(change > 0 for change in changes),
            "last": self.journal.scales[-1],
        }

    def dense(self, bytes_per_element: int) -> Traffic:
        """The same run as a dense all-reduce."""
        steps = self.whole_run.steps
        return ring_all_reduce(steps, bytes_per_element * self.elements * steps)

    def print(self) -> None:
        """Print quality and cost as two tables."""
        console = Console()
        console.print(self._quality())
        console.print(self._cost())

    def _quality(self) -> Table:
        last = self.journal.history[-1]
        table = Table(title=f"{self.args.task}, {self.args.recipe}, {self.world_size} ranks")
        table.add_column("quality")
        table.add_column("", justify="right")
        if self.args.task == "lm":
            loss = last.validation_loss
            table.add_row("validation loss", f"{loss:.4f} nats per byte")
            table.add_row("", f"{loss / math.log(2):.4f} bits per byte")
        else:
            table.add_row("validation accuracy", f"{last.accuracy:.2%}")
            table.add_row("validation loss", f"{last.validation_loss:.4f}")
        if self.args.amp == "fp16":
            table.add_row(
                "loss scale", "{overflows} overflows, {growths} growths".format(**self.loss_scale)
            )
        table.add_row("speed", f"{self.steps_per_second:.2f} steps/s")
        table.add_row("parameters", f"{self.elements:,}")
        return table

    def _cost(self) -> Table:
        runs = {
            "whole run": self.whole_run,
            "after warm-up": self.after_warmup,
            "dense fp32": self.dense(4),
            "dense 16-bit": self.dense(2),
        }
        note = "" if self.whole_run.measured else "; this recipe's too"
        table = Table(
            title="cost of one step to one rank",
            caption=f"dense: computed for a ring all-reduce{note}",
        )
        table.add_column("")
        for name in runs:
            table.add_column(name, justify="right")
        costs = [self.cost(traffic) for traffic in runs.values()]
        rows = {
            "bits per nonzero": ("bits_per_nonzero", "{:.2f}"),
            "payload bytes": ("payload_bytes", "{:,.0f}"),
            "sent bytes": ("sent_bytes", "{:,.0f}"),
            "received bytes": ("received_bytes", "{:,.0f}"),
            "ratio": ("ratio", "{:,.1f}"),
        }
        if self.args.within:
            rows["sent inside the node"] = ("within_bytes", "{:,.0f}")
        for title, (key, form) in rows.items():
            table.add_row(
                title, *(form.format(c[key]) if c[key] is not None else "–" for c in costs)
            )
        return table

    def cost(self, traffic: Traffic) -> dict[str, float | None]:
        """Costs of one step; ``ratio`` is fp32 gradient bytes to payload bytes."""
        steps, payload = max(1, traffic.steps), traffic.payload_bytes
        return {
            "bits_per_nonzero": 8 * payload / traffic.nonzeros if traffic.nonzeros else None,
            "payload_bytes": payload / steps,
            "sent_bytes": traffic.sent_bytes / steps,
            "received_bytes": traffic.received_bytes / steps,
            "within_bytes": traffic.within_bytes / steps,
            "ratio": 4 * self.elements * traffic.steps / payload if payload else None,
        }

    def write_json(self, path: Path) -> None:
        """Write configuration, results and history."""
        config = vars(self.args) | {"world_size": self.world_size, "parameters": self.elements}
        last = self.journal.history[-1]
        results: dict[str, Any] = {
            "validation_loss": last.validation_loss,
            "accuracy": last.accuracy,
            "steps_per_second": self.steps_per_second,
            "loss_scale": self.loss_scale,
            "measured": self.whole_run.measured,
            "whole_run": self.cost(self.whole_run),
            "after_warmup": self.cost(self.after_warmup),
            "dense_fp32": self.cost(self.dense(4)),
            "dense_16bit": self.cost(self.dense(2)),
        }
        history = [asdict(point) for point in self.journal.history]
        document = {"config": config, "results": results, "history": history}
        path.write_text(json.dumps(document, indent=2, default=str) + "\n")

    def write_plot(self, path: Path) -> None:
        """Draw the losses against steps and against bytes sent."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        axes: Any
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
        history = self.journal.history
        megabytes = [point.sent_bytes / 1e6 for point in history]
        steps = [point.step for point in history]
        for axis, x, label in zip(
            axes, (steps, megabytes), ("step", "MB sent by a rank"), strict=True
        ):
            axis.plot(x, [point.train_loss for point in history], label="training")
            axis.plot(x, [point.validation_loss for point in history], "o-", label="validation")
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("loss (nats)")
        axes[0].legend()
        figure.suptitle(f"{self.args.task}, {self.args.recipe}, {self.world_size} ranks")
        figure.savefig(path)
