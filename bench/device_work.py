"""What some work asks of a GPU, as PyTorch's profiler sees it.

Launches are kernels, fills and copies within the device. Copies to and from it count by themselves;
where their memory on the host is pageable, they may hold the host up. The host waits where it
synchronizes with a stream or an event (with the whole device only benches do).
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Event = dict[str, Any]  # of a trace; times in microseconds

WAITS = {"cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
ON_DEVICE = {"kernel", "gpu_memset", "gpu_memcpy"}


@dataclass
class Work:
    """What was asked of a device."""

    waits: int = 0
    launches: int = 0
    to_device: int = 0
    from_device: int = 0
    pageable: int = 0  # of both
    busy: float | None = None  # microseconds in which the device had something to do


def work_of(function: Callable[[], object], trace: Path | None = None) -> Work:
    """What a function asks of the device, on any thread.

    Args:
        function: what to call.
        trace: a file for the trace, zipped.
    """
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        text = path.read_text()
    if trace:
        trace.write_bytes(gzip.compress(text.encode()))
    return seen_in(json.loads(text)["traceEvents"])


def seen_in(events: Iterable[Event]) -> Work:
    """The work in a trace."""
    work, spans = Work(), []
    for event in events:
        kind, name = event.get("cat"), event.get("name", "")
        work.waits += kind == "cuda_runtime" and name in WAITS
        if kind not in ON_DEVICE:
            continue
        spans.append((event["ts"], event["ts"] + event["dur"]))
        work.to_device += "HtoD" in name
        work.from_device += "DtoH" in name
        work.launches += not ("HtoD" in name or "DtoH" in name)
        work.pageable += "Pageable" in name
    work.busy = covered(spans)
    return work


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of some spans lasted."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
