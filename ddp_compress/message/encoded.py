"""All entries of a message as a quantizer has written them, added without being decoded first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ddp_compress.message.runs import Run


class Encoded(Protocol):
    """The values of a run."""

    def add_to(self, out: Tensor, all_ranks: Sequence[Any], scale: float, afresh: bool) -> None:
        """``out += scale * values`` for rank after rank.

        Args:
            out: [n], the run. Half types are summed in fp32 and rounded once.
            all_ranks: the same run of every rank; this is the first.
            scale: factor of every value.
            afresh: whether ``out`` counts as zero before, whatever it holds.
        """


@dataclass(frozen=True)
class EncodedEntries:
    """Entries of all compressed positions.

    Args:
        runs: where they lie.
        values: of every run.
    """

    runs: Sequence[Run]
    values: Sequence[Encoded]

    def zero_in(self, out: Tensor, start: int) -> None:
        """``out[positions - start] = 0`` on a flat tensor [n]."""
        for _, here in _runs_in(out, start, self.runs):
            out[here] = 0.0


def add_encoded(
    out: Tensor, start: int, lists: Sequence[EncodedEntries], scale: float, afresh: bool
) -> None:
    """See `entries.add_entries`."""
    done = 0
    for number, here in _runs_in(out, start, lists[0].runs):
        if afresh:
            out[done : here.start] = 0.0
        values = [entries.values[number] for entries in lists]
        values[0].add_to(out[here], values, scale, afresh)
        done = here.stop
    if afresh:
        out[done:] = 0.0


def _runs_in(out: Tensor, start: int, runs: Sequence[Run]) -> Iterator[tuple[int, slice]]:
    """The runs that lie in ``[start, start + n)``, and where."""
    for number, run in enumerate(runs):
        if start <= run.start < start + len(out):
            yield number, slice(run.start - start, run.end - start)
