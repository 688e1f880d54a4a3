"""Neighbouring parameters that are compressed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ddp_compress.ops import host

if TYPE_CHECKING:
    from ddp_compress.message.plan import Tables


class Run(NamedTuple):
    """Neighbours in one chunk, all of them compressed.

    Args:
        chunk: its number in the message.
        start: position of the first element in the message.
        end: position behind the last.
        bounds: offsets of the parameters from the start, [P + 1] int64.
    """

    chunk: int
    start: int
    end: int
    bounds: Tensor


def runs_of(tables: Tables) -> list[Run]:
    """All runs of a message, in order.

    Example:
        >>> from ddp_compress.message.layout import Layout
        >>> from ddp_compress.message.plan import tables_for
        >>> tables = tables_for((Layout(("a", "b", "c"), (8, 2, 6)),), "tensor", min_numel=3)
        >>> [(run.start, run.end) for run in runs_of(tables)]
        [(0, 8), (10, 16)]
    """
    edges, groups = tables.bounds.tolist(), iter(tables.groups.tolist())
    starts, runs = iter(edges[:-1]), []
    for chunk, layout in enumerate(tables.layouts):
        open_run: list[int] = []
        for size in layout.sizes:
            start = next(starts)
            if next(groups) >= 0:
                open_run = [*(open_run or [start]), start + size]
            elif open_run:
                runs.append(_run(chunk, open_run))
                open_run = []
        if open_run:
            runs.append(_run(chunk, open_run))
    return runs


def _run(chunk: int, edges: list[int]) -> Run:
    bounds = host.tensor([edge - edges[0] for edge in edges], dtype=torch.int64)
    return Run(chunk, edges[0], edges[-1], bounds)
