"""Whether compression pays: what was found, and the verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from ddp_compress.advise.link import Link, rate_text
from ddp_compress.advise.methods import POWERSGD
from ddp_compress.advise.methods import UNCOMPRESSED as PLAIN
from ddp_compress.advise.outlook import Outlook, Setting, break_even
from ddp_compress.advise.workload import Workload

WORTH = 0.9  # of the step without it is what compression must stay below
UNCOMPRESSED = tuple(each.name for each in PLAIN)


@dataclass(frozen=True)
class Advice:
    """What every method would bring, and which to take.

    Attributes:
        workload: the model, and its step without an exchange.
        here: how many ranks, and the link between them.
        is_measured: whether there were several; else the setting was assumed.
        outlooks: of every method.
        inside: the link between ranks of a host, where that was measured.
        seconds: how long it took to find out.
    """

    workload: Workload
    here: Setting
    is_measured: bool
    outlooks: Sequence[Outlook]
    inside: Link | None = None
    seconds: float = 0.0

    @cached_property
    def sorted(self) -> list[Outlook]:
        """The outlooks, the quickest step first."""
        return sorted(self.outlooks, key=self.step)

    def step(self, outlook: Outlook) -> float:
        """Seconds of a training step, here."""
        return outlook.step(self.workload)

    @property
    def dense(self) -> Outlook:
        """Of the dense all-reduce."""
        return next(each for each in self.outlooks if each.name == "dense")

    @property
    def uncompressed(self) -> Outlook:
        """The quickest without compression: dense, or rounded to 16 bits."""
        return next(each for each in self.sorted if each.name in UNCOMPRESSED)

    @property
    def recipe(self) -> Outlook | None:
        """The quickest recipe; None where none was asked for."""
        return next((each for each in self.sorted if each.is_recipe), None)

    @property
    def pays(self) -> bool:
        """Whether the quickest recipe is quicker than all else, by more than a tenth and noise.

        False where the step is not known: nobody can tell what of an exchange backward hides.
        """
        if self.recipe is None or not self.workload.step:
            return False
        ours, noise = self.step(self.recipe), self.recipe.spread + self.uncompressed.spread
        plain = self.step(self.uncompressed)
        return ours < WORTH * plain and ours + noise < plain and self.recipe is self.sorted[0]

    def break_even(self, outlook: Outlook) -> float | None:
        """The link rate below which a method is quicker than without compression."""
        others = [each for each in self.outlooks if each.name in UNCOMPRESSED]
        return break_even(outlook, [each for each in others if each is not outlook], self.workload)

    @property
    def verdict(self) -> str:
        """One sentence."""
        plain, dense = self.uncompressed, self.dense
        if not self.workload.step:
            return self._of_exchanges()
        figures = f"{dense.name} takes {_ms(self.step(dense))} a step"
        if plain is not dense:
            figures += f", {plain.name} {_ms(self.step(plain))}"
        if self.recipe is None:
            return f"no recipe was asked for: {figures}"
        best = self.recipe
        ours = f"{best.name} {_ms(self.step(best))}"
        if self.pays:
            rate = self.break_even(best)
            known = rate is not None and rate < math.inf
            where = f"; it pays on links below {rate_text(rate)}" if rate and known else ""
            return f"compress: {figures}, and {ours}{where}"
        if self.sorted[0].name == POWERSGD.name:
            thin = self.sorted[0]
            return f"take PyTorch's PowerSGD: {_ms(self.step(thin))}; {figures}, {ours}"
        half = self.step(plain) < WORTH * self.step(dense)
        stay = f"stay dense, with PyTorch's {plain.name} hook" if half else "stay dense"
        return f"{stay}: {figures}, and the quickest recipe, {ours}"

    def _of_exchanges(self) -> str:
        quickest = min(self.outlooks, key=lambda each: each.exchange())
        return (
            "no verdict without a step's seconds, behind which an exchange may hide (--step): "
            f"dense exchanges in {_ms(self.dense.exchange())}, {quickest.name} in "
            f"{_ms(quickest.exchange())}"
        )

    def to_json(self) -> str:
        """All figures: seconds, bytes and bits per second."""
        rows = [
            asdict(each)
            | {
                "step": self.step(each),
                "exchange": each.exchange(),
                "sent": each.sent,
                "break_even": _finite(self.break_even(each)),
                "steps": {
                    ranks: each.step(self.workload, Setting(ranks, self.here.link))
                    for ranks in each.costs
                },
            }
            for each in self.sorted
        ]
        document = {
            "verdict": self.verdict,
            "pays": self.pays,
            "parameters": self.workload.numel,
            "step": self.workload.step,
            "here": asdict(self.here),
            "inside": asdict(self.inside) if self.inside else None,
            "is_measured": self.is_measured,
            "seconds": self.seconds,
            "methods": rows,
        }
        return json.dumps(document, indent=2) + "\n"

    def __str__(self) -> str:
        from ddp_compress.advise.report import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return f"Advice({self.verdict!r})"

    def print(self) -> None:
        """Print the tables and the verdict.

        Raises:
            ImportError: rich is not installed.
        """
        from ddp_compress.advise.report import show

        show(self)

    def plot(self, path: str | Path) -> None:
        """Draw step time against link rate, every method's, with the link of here marked.

        Args:
            path: of a file that is written, such as "advice.png".

        Raises:
            ImportError: matplotlib is not installed.
        """
        from ddp_compress.advise.plot import draw

        draw(self, Path(path))


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _finite(rate: float | None) -> float | str | None:
    return "any" if rate == math.inf else rate
