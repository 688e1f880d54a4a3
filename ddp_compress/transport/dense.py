"""Dense tensors among the ranks of a node: a slice to each, and every slice to all."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.ops.large_pages import in_large_pages
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.phases import Phases
from ddp_compress.transport.shared_memory import SharedMemory


class Dense:
    """The way of dense tensors among the L ranks of a node.

    On a GPU they go through its backend, where the process group has one. All else goes through
    memory that the ranks share, or where they share none through Gloo, ten times slower.

    Args:
        comm: the exchange among them, of what is in the host's memory.
        on_device: the same of what is on a GPU; None where there is none.
    """

    def __init__(self, comm: Comm, on_device: Comm | None) -> None:
        self._comm = on_device or comm
        self._on_device = on_device is not None
        self._shared = SharedMemory(comm)
        self._rooms: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def scatter(self, pieces: Sequence[Tensor], numels: Sequence[int]) -> Phases[list[Tensor]]:
        """Send every rank its slice.

        Args:
            pieces: all slices, rank by rank, of one dtype.
            numels: elements of every slice, [L].

        Returns:
            What every rank has for this one, [L], to be read before the next call.
        """
        rank, size, total = self._comm.rank, self._comm.world_size, sum(numels)
        here, start = numels[rank], sum(numels[:rank])
        if (yield from self._shares(total, pieces[0].dtype)):
            found = yield from self._written(pieces, total, total - here, (size - 1) * here)
            return [each[start : start + here] for each in found]
        mine = self._laid(pieces, total)
        theirs = self._room("theirs", size * here, mine.dtype, mine.device)
        yield from self._comm.swap(mine, theirs, numels, [here] * size)
        return list(theirs.split([here] * size))

    def gather(self, pieces: Sequence[Tensor], numels: Sequence[int]) -> Phases[list[Tensor]]:
        """Send this rank's slice to all.

        Args:
            pieces: the slice, of one dtype.
            numels: elements of every rank's, [L].

        Returns:
            The slices of all ranks, [L], to be read before the next call.
        """
        rank, size, longest = self._comm.rank, self._comm.world_size, max(numels)
        here = numels[rank]
        if (yield from self._shares(longest, pieces[0].dtype)):
            received = sum(numels) - here
            found = yield from self._written(pieces, here, (size - 1) * here, received)
        else:
            mine = self._laid(pieces, longest)
            theirs = self._room("theirs", size * longest, mine.dtype, mine.device)
            yield from self._comm.gather(mine, theirs)
            found = list(theirs.split(longest))
        return [each[:numel] for each, numel in zip(found, numels, strict=True)]

    def _shares(self, numel: int, dtype: torch.dtype) -> Phases[bool]:
        """Whether so many elements go through shared memory, on every rank."""
        if self._on_device or self._shared.fault:
            return False
        if not (yield from self._shared.reserve(numel * dtype.itemsize)):
            warnings.warn(
                f"the ranks of this node share no memory ({self._shared.fault}): their gradients "
                "go through Gloo, about ten times slower. If a node is of several hosts, or each "
                "rank has a container of its own, choose others by within=",
                stacklevel=2,
            )
        return not self._shared.fault

    def _written(
        self, pieces: Sequence[Tensor], numel: int, sent: int, received: int
    ) -> Phases[list[Tensor]]:
        """What every rank has written of one dtype, once this one has; in elements."""
        dtype = pieces[0].dtype
        with self._comm.or_end():
            _lay(pieces, self._shared.mine(numel, dtype))
        found = yield from self._shared.meet()
        self._comm.traffic.moved(sent * dtype.itemsize, received * dtype.itemsize)
        return [each.view(dtype) for each in found]

    def _laid(self, pieces: Sequence[Tensor], numel: int) -> Tensor:
        """Pieces side by side where they are sent from, [numel], with any numbers behind them."""
        device = pieces[0].device if self._on_device else torch.device("cpu")
        with self._comm.or_end():
            mine = self._room("mine", numel, pieces[0].dtype, device)
            _lay(pieces, mine[: sum(map(len, pieces))])
        return mine

    def _room(self, name: str, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory [numel] that stays from call to call."""
        room = self._rooms.get((name, dtype, device))
        if room is None or len(room) < numel:
            room = in_large_pages(torch.empty(numel, dtype=dtype, device=device))
            self._rooms[name, dtype, device] = room
        return room[:numel]


def _lay(pieces: Sequence[Tensor], where: Tensor) -> None:
    """Put pieces side by side, perhaps on another device."""
    if pieces[0].device == where.device:
        torch.cat(list(pieces), out=where)
    else:
        where.copy_(torch.cat(list(pieces)))
