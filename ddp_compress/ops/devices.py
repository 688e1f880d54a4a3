"""Host and device: what is copied between them, who waits, and the stream that work runs on.

Gradients, memory and entries stay on the gradients' device. Tables, which describe a message (a
plan's bounds, groups and counts), and bytes on their way between ranks are in the host's memory.
"""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

Y = TypeVar("Y")
R = TypeVar("R")

_NOTHING = nullcontext()


def to_device_of(table: Tensor, data: Tensor) -> Tensor:
    """A tensor of the host's on the device of another; the host does not wait for its work.

    Example:
        >>> table = torch.arange(3)
        >>> to_device_of(table, torch.zeros(5)) is table
        True
    """
    return table.to(data.device, non_blocking=True)


def to_host(data: Tensor) -> Tensor:
    """A tensor in the host's memory. The host waits until its device has come so far.

    Example:
        >>> data = torch.arange(3)
        >>> to_host(data) is data
        True
    """
    return OnItsWay(data).get()


class OnItsWay:
    """A tensor on its way to the host's memory.

    Example:
        >>> OnItsWay(torch.arange(3)).get()
        tensor([0, 1, 2])
    """

    def __init__(self, data: Tensor) -> None:
        self._data, self._arrived = data, None
        if data.is_cuda:  # pinned: twice as fast a copy, and nobody waits yet
            self._data = torch.empty(data.shape, dtype=data.dtype, device="cpu", pin_memory=True)
            self._data.copy_(data, non_blocking=True)
            self._arrived = torch.cuda.current_stream(data.device).record_event()

    def get(self) -> Tensor:
        """The tensor there. The host waits until its device has come so far."""
        if self._arrived is not None and not self._arrived.query():
            self._arrived.synchronize()
        return self._data


def at_once_on_host(data: Sequence[Tensor]) -> list[Tensor]:
    """Flat tensors of one device in the host's memory, for which the host waits once.

    Example:
        >>> at_once_on_host([torch.arange(2), torch.tensor([True])])
        [tensor([0, 1]), tensor([True])]
    """
    if not data[0].is_cuda:
        return list(data)
    found = to_host(torch.cat([each.view(torch.uint8) for each in data]))
    parts = found.split([each.nbytes for each in data])
    # Whole numbers must stand where their size says.
    return [
        (part if each.itemsize == 1 else part.clone()).view(each.dtype)
        for part, each in zip(parts, data, strict=True)
    ]


def at_once_on_device(data: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Flat tensors of one dtype, from the host's memory in one copy that nobody waits for.

    Example:
        >>> at_once_on_device([torch.arange(2)], torch.device("cpu"))
        [tensor([0, 1])]
    """
    if device.type != "cuda":
        return list(data)
    together = torch.cat(list(data))
    pinned = torch.empty(together.shape, dtype=together.dtype, device="cpu", pin_memory=True)
    sent = pinned.copy_(together).to(device, non_blocking=True)
    return list(sent.split([len(each) for each in data]))


def set_device(device: torch.device) -> None:
    """Make a device the thread's own, so that nothing it does wakes another.

    A new thread is on the first GPU; to return there from another costs memory on it.

    Example:
        >>> set_device(torch.device("cpu"))
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def record_stream(data: Tensor) -> None:
    """Keep memory from other streams, once it is let go of, until the current one has done so far.

    Example:
        >>> record_stream(torch.arange(3))
    """
    if data.is_cuda:
        data.record_stream(torch.cuda.current_stream(data.device))


class SideStream:
    """A stream of a state's own on every CUDA device: its work runs beside backward.

    On the CPU it does nothing.

    Example:
        >>> side_stream = SideStream()
        >>> with side_stream.on(torch.device("cpu")):
        ...     pass
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            # Before backward: its many small kernels hardly delay that, and messages leave sooner.
            self._streams[device] = torch.cuda.Stream(device, priority=-1)
        return self._streams[device]

    def on(self, device: torch.device) -> AbstractContextManager[object]:
        """Put what is launched inside on it."""
        if device.type != "cuda":
            return _NOTHING
        return torch.cuda.stream(self._stream(device))

    def drive(self, work: Generator[Y, None, R], device: torch.device) -> Generator[Y, None, R]:
        """The same work, on the side stream, after all that the current stream has to do by now.

        Whoever drives it puts nothing else on a stream before its end.
        """
        if device.type != "cuda":
            return work
        ready = torch.cuda.current_stream(device).record_event()
        return self._after(ready, work, device)

    def _after(
        self, ready: torch.cuda.Event, work: Generator[Y, None, R], device: torch.device
    ) -> Generator[Y, None, R]:
        with self.on(device):
            self._stream(device).wait_event(ready)
            return (yield from work)
