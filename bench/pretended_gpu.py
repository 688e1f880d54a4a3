"""A GPU that is pretended, for benches: what they ask of it is counted, and nothing is timed.

It is the tests' pretence (see `tests.pretend_cuda`), with as much more of `torch.cuda` as benches
use. Kernels of this package are counted where they are emulated. What PyTorch would launch is told
by its operators, one kernel each but for `KERNELS`; a GPU's profiler is the judge of that.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import device_work
from device_work import Work
from gpu import ROOT
from tests import pretend_cuda
from tests.pretend_cuda import OnCuda

aten = torch.ops.aten
KERNELS = {
    aten.repeat_interleave.Tensor: 3,  # two that scan, one that writes
    aten.searchsorted.Scalar: 3,  # one makes the number a tensor, one gives it its dtype
}
MEMORY_ALONE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
TOLD = {  # how long their result is, or what it is: the host waits to hear that
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.unique_consecutive.default,
}


@dataclass
class PretendedWork(Work):
    """What was asked of the pretended device."""

    calls: int = 0  # of PyTorch's operators, but for views and reads of a number


class Counter:
    """Counts what is asked of the pretended device, on any thread."""

    def __init__(self) -> None:
        self._work = PretendedWork()
        self._lock = threading.Lock()
        self._pinned: dict[int, Tensor] = {}  # kept, lest pageable memory come to their addresses
        self._on_either = pretend_cuda.on_either
        self.stream = Stream(self)

    def work_of(self, function: Callable[[], object], trace: Path | None = None) -> Work:
        """In the place of the profiler's; there is no trace."""
        emulated = Emulated()
        self._work = PretendedWork()
        function()
        self._add(**emulated.since())
        work, self._work = self._work, PretendedWork()
        return work

    def on_either(self, func: Any, args: Any, kwargs: Any) -> Any:
        """In the place of the pretence's: one operation, on the host or on the device."""
        result = self._on_either(func, args, kwargs)
        if kwargs.get("pin_memory"):
            self._pinned[result.untyped_storage().data_ptr()] = result
        moved_in_vain = func is aten._to_copy.default and is_already_so(args[0], result)
        if not moved_in_vain and not is_view(func) and func is not aten._local_scalar_dense.default:
            self._add(calls=1)
        if func is aten.copy_.default:
            self._copied(args[1], args[0], non_blocking=bool((*args[2:], False)[0]))
        elif func is aten._to_copy.default:
            if not moved_in_vain:
                self._copied(args[0], result, non_blocking=bool(kwargs.get("non_blocking")))
        elif func.namespace == "aten" and any(map(on_gpu, tree_leaves((args, result)))):
            told = is_told(func, args, kwargs)
            self._add(launches=launches(func, args, result), from_device=told, waits=told)
        return result

    def wait(self) -> None:
        """The host waits for the device."""
        self._add(waits=1)

    def tolist(self, tensor: OnCuda) -> Any:
        """In the place of a tensor's: the host waits for a copy."""
        self._add(from_device=1, pageable=1, waits=1)
        return tensor.host.tolist()

    def _copied(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        if not target.numel() or not (on_gpu(source) or on_gpu(target)):
            return
        if on_gpu(source) and on_gpu(target):
            self._add(launches=1)
            return
        on_host, direction = (target, "from_device") if on_gpu(source) else (source, "to_device")
        pageable = on_host.untyped_storage().data_ptr() not in self._pinned
        waits = not non_blocking or (pageable and on_host is target)
        self._add(**{direction: 1, "pageable": pageable, "waits": waits})

    def _add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self._work, name, getattr(self._work, name) + count)


def on_gpu(value: object) -> bool:
    return isinstance(value, OnCuda)


def is_already_so(source: Tensor, result: Tensor) -> bool:
    """Whether PyTorch would not have moved a tensor.

    What says it is on a GPU is moved there by the pretence: to C++ it is on the host.
    """
    return on_gpu(source) and on_gpu(result) and source.dtype == result.dtype


def is_view(func: Any) -> bool:
    """Whether an operator gives a view."""
    shown = [each.alias_info for each in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in shown)


def launches(func: Any, args: Any, result: Any) -> int:
    """How many kernels PyTorch would launch for an operator on the device."""
    if is_view(func) or func._schema.name.split("::")[1] in MEMORY_ALONE:
        return 0
    if not any(each.numel() for each in tree_leaves(result) if on_gpu(each)):
        return int(func is aten.equal.default)
    if func is aten.cat.default and len({each.dtype for each in args[0]}) > 1:
        return len(args[0])  # each is copied, and converted on the way
    return KERNELS.get(func, 1)


def is_told(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host waits to hear something of an operator on the device."""
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if func in (aten.index.Tensor, aten.index_put_.default):
        return any(each is not None and each.dtype == torch.bool for each in args[1])
    return func in TOLD


class Emulated:
    """What the emulated kernels have counted since this was made."""

    NAMES = ("waits", "launches", "to_device", "from_device")

    def __init__(self) -> None:
        library = ctypes.CDLL(str(ROOT / "build/emulated.so"))
        self._counts = {
            name: ctypes.c_uint64.in_dll(library, f"emulated_{name}") for name in self.NAMES
        }
        self._before = self._now()

    def since(self) -> dict[str, int]:
        """By name."""
        return {name: count - self._before[name] for name, count in self._now().items()}

    def _now(self) -> dict[str, int]:
        return {name: count.value for name, count in self._counts.items()}


class Stream:
    """The only one: it has done all that was recorded before the host last waited."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._recorded = self._done = 0

    def record_event(self) -> Event:
        """A place in it."""
        self._recorded += 1
        return Event(self, self._recorded)

    def synchronize(self) -> None:
        """The host waits for all of it."""
        self.wait_for(self._recorded)

    def has_done(self, place: int) -> bool:
        """Whether the host knows that it has come so far."""
        return place <= self._done

    def wait_for(self, place: int) -> None:
        """The host waits until it has come so far."""
        self._done = max(self._done, place)
        self._counter.wait()

    def wait_event(self, event: Event) -> None:
        """It is in order."""

    def wait_stream(self, stream: Stream) -> None:
        """There is one."""


class Event:
    """A place in the stream; of a bench's own, where nothing is ever under way, none."""

    def __init__(self, stream: Stream | None = None, place: int = 0, **options: Any) -> None:
        self._stream = stream
        self._place = place

    def record(self, stream: object = None) -> None:
        """There is one stream."""

    def synchronize(self) -> None:
        """The host waits for it."""
        if self._stream is not None:
            self._stream.wait_for(self._place)

    def query(self) -> bool:
        """Whether it is over."""
        return self._stream is None or self._stream.has_done(self._place)

    def elapsed_time(self, end: Event) -> float:
        """Nothing is timed."""
        return 1.0


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """In here `gpu.CUDA` gives what says it is on a GPU, and `device_work.work_of` counts it."""
    counter = Counter()
    fakes: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 0,  # what a bench asks before it takes NCCL
        "get_device_name": lambda: "pretended GPU",
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: counter.stream,
        "Stream": lambda *_, **__: counter.stream,
        "Event": Event,
        "CUDAGraph": MagicMock,
        "graph": lambda graph: nullcontext(),
        "_sleep": lambda cycles: None,
    }
    with (
        pretend_cuda.pretend(),
        patch.multiple(torch.cuda, **fakes),
        patch.object(pretend_cuda, "on_either", counter.on_either),
        patch.object(OnCuda, "tolist", lambda tensor: counter.tolist(tensor)),
        patch.object(OnCuda, "cpu", lambda tensor: tensor.host.clone(), create=True),
        patch.object(device_work, "work_of", counter.work_of),
    ):
        yield
