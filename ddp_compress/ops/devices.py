"""Host and device: what is copied between them, who waits, and the stream that work runs on.

Gradients, memory and entries stay on the gradients' device. Tables, which describe a message (a
plan's bounds, groups and counts), and bytes on their way between ranks are in the host's memory.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
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
    return to_device(table, data.device)


def to_device(data: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on a device; the host does not wait for its work.

    Example:
        >>> data = torch.arange(3)
        >>> to_device(data, torch.device("cpu")) is data
        True
    """
    if data.device == device:
        return data
    return (data if data.is_pinned() else _pinned(data)).to(device, non_blocking=True)


def _pinned(data: Tensor) -> Tensor:
    """A copy in pinned memory: from other memory a copy to a device may wait for its work."""
    copy = torch.empty(data.shape, dtype=data.dtype, device="cpu", pin_memory=True)
    return copy.copy_(data)


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
    sizes = [len(each) for each in data]
    pinned = torch.empty(sum(sizes), dtype=data[0].dtype, device="cpu", pin_memory=True)
    torch.cat(list(data), out=pinned)
    return list(pinned.to(device, non_blocking=True).split(sizes))


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


class Stream:
    """A stream of a device, whose work runs beside that of others; on the CPU it is nothing.

    Example:
        >>> stream = Stream(torch.device("cpu"))
        >>> with stream.on():
        ...     pass
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Before backward: its many small kernels hardly delay that, and messages leave sooner.
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device, priority=-1) if cuda else None

    def on(self) -> AbstractContextManager[object]:
        """Put what is launched inside on it."""
        return _NOTHING if self._stream is None else torch.cuda.stream(self._stream)

    @contextmanager
    def in_between(self) -> Iterator[None]:
        """Put what is launched inside on it, between what the current stream has done and will do.

        Example:
            >>> with Stream(torch.device("cpu")).in_between():
            ...     pass
        """
        self.follow()
        try:
            with self.on():
                yield
        finally:
            self.join()

    @contextmanager
    def host_waits(self) -> Iterator[None]:
        """Put what is launched inside on it, behind the current stream; the host waits for its end.

        So no other stream waits for it, whatever it may wait for.

        Example:
            >>> with Stream(torch.device("cpu")).host_waits():
            ...     pass
        """
        self.follow()
        with self.on():
            yield
        if self._stream is not None:
            self._stream.synchronize()

    def follow(self) -> None:
        """Let it go on behind all that the current stream has to do by now.

        Example:
            >>> Stream(torch.device("cpu")).follow()
        """
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def join(self) -> None:
        """Let the current stream go on behind all that this one has to do by now.

        Example:
            >>> Stream(torch.device("cpu")).join()
        """
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def drive(self, work: Generator[Y, None, R]) -> Generator[Y, None, R]:
        """The same work, on this stream, after all that the current stream has to do by now.

        Whoever drives it puts nothing else on a stream before its end.
        """
        if self._stream is None:
            return work
        return self._after(torch.cuda.current_stream(self._device).record_event(), work)

    def _after(self, ready: torch.cuda.Event, work: Generator[Y, None, R]) -> Generator[Y, None, R]:
        with self.on():
            torch.cuda.current_stream(self._device).wait_event(ready)
            return (yield from work)


def side_stream(device: torch.device) -> Stream:
    """The stream on which all states of a process work on a device, beside backward.

    There is one, because states share what they keep there (`Tables.on`), and a second would take
    no work off a GPU. Where two states are under way at the same time, each finds its own work
    there in its own order, and some of the other's in between. So nothing of ours on it may wait
    for another rank, where the other state's work may have come first.

    Example:
        >>> side_stream(torch.device("cpu")) is side_stream(torch.device("cpu"))
        True
    """
    with _making:  # states have threads of their own
        if device not in _side_streams:
            _side_streams[device] = Stream(device)
        return _side_streams[device]


_side_streams: dict[torch.device, Stream] = {}
_making = Lock()
