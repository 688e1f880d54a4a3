"""What compression did in an interval, in flat numbers for whoever watches a run."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.message.chunk import memory_dtype
from ddp_compress.stages import HOOK, STAGES, Stages
from ddp_compress.stats import Stats


class Metrics:
    """Counts, norms and seconds since they were last read.

    Args:
        stats: the counts at the interval's start.

    Attributes:
        stages: where time is counted.
    """

    def __init__(self, stats: Stats) -> None:
        self.stages = Stages()
        self._before = copy.deepcopy(stats)
        self._asked = False  # for the norm of the next step's gradient
        self._norms: list[Tensor] | None = None

    def restart(self, stats: Stats) -> None:
        """Begin the interval anew."""
        self.stages.take()
        self._before, self._norms = copy.deepcopy(stats), None

    def norms(self) -> list[Tensor] | None:
        """Where a step that begins is to put norms of its gradient; None where none is due."""
        return [] if self._asked else None

    def stepped(self, norms: list[Tensor] | None) -> None:
        """A step is over, whose gradient's parts have these norms."""
        if norms is not None:
            self._norms, self._asked = norms, False

    def read(self, stats: Stats, kept: Sequence[Tensor], within: bool) -> dict[str, float]:
        """See `CompressionState.metrics`; the next interval begins.

        Args:
            stats: the counts of now.
            kept: the residual, in parts.
            within: whether there are nodes.
        """
        before, seconds = self._before, self.stages.take()
        steps, aborted = stats.steps - before.steps, stats.aborted - before.aborted
        taken = steps + aborted  # what aborted steps sent is counted; their elements are not
        elements = _share(stats.elements - before.elements, steps) * taken
        bits = stats.payload_bits - before.payload_bits
        values = {
            "steps": steps,
            "aborted": aborted,
            "density": _share(stats.nonzeros - before.nonzeros, elements),
            "ratio": _share(32 * elements, bits),
            "sent_bytes": _share(stats.sent_bytes - before.sent_bytes, taken),
            "received_bytes": _share(stats.received_bytes - before.received_bytes, taken),
            "dense_bytes": _share(stats.dense_bytes - before.dense_bytes, steps),
            "residual_norm": _total([norm(part) for part in kept]),
            "gradient_norm": math.nan if self._norms is None else _total(self._norms),
        }
        if within:
            sent = stats.within.sent_bytes - before.within.sent_bytes
            values["within_sent_bytes"] = _share(sent, taken)
        for name in (*STAGES, HOOK):
            spent = seconds.get(name, 0.0) if seconds else math.nan
            values[f"{name}_seconds"] = _share(spent, taken)
        self._before, self._norms = copy.deepcopy(stats), None
        self._asked = self.stages.asked = True
        return {f"compression/{name}": float(value) for name, value in values.items()}


def norm(flat: Tensor) -> Tensor:
    """The Euclidean norm of a tensor, [], in the dtype of its memory: nobody waits for it yet.

    Example:
        >>> norm(torch.tensor([3.0, 4.0], dtype=torch.bfloat16))
        tensor(5.)
    """
    return torch.linalg.vector_norm(flat, dtype=memory_dtype(flat.dtype))


def _total(norms: Sequence[Tensor]) -> float:
    """The norm of all parts together, of theirs."""
    return math.hypot(*map(float, norms))


def _share(count: float, of: float) -> float:
    return count / of if of else math.nan
