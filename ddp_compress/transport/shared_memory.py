"""Memory that the ranks of one host share, for what is too much to go through sockets."""

from __future__ import annotations

import os
import struct
from uuid import uuid4

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.phases import Phases

_PLACE = struct.Struct("<qqq16s")  # process, file descriptor, size, the bytes it begins with
_ALIGNMENT = 64  # bytes before the first half, the key among them
_BYTE = host.zeros(1, dtype=torch.uint8)


class SharedMemory:
    """A piece of memory of every rank of a host, which all of them can read.

    A rank writes into its own, then meets the others in a small collective, and reads theirs. Every
    piece has two halves that take turns: who writes into one again has met all ranks since they
    read it.

    It has no name in the file system, so that it is freed with its last user, however that ends,
    and need not fit into ``/dev/shm``.

    Args:
        comm: the exchange among ranks that may be of one host.

    Attributes:
        fault: why there is none, on whichever rank; empty where there is, or may be.
    """

    def __init__(self, comm: Comm) -> None:
        self.fault = "" if hasattr(os, "memfd_create") else "it takes Linux"
        self._comm = comm
        self._pieces: list[Tensor] = []  # of every rank, in rank order
        self._capacity = 0  # bytes of a half
        self._half = 0

    def reserve(self, size: int) -> Phases[bool]:
        """Have room for so many bytes; all ranks call it alike.

        Returns:
            Whether there is room, on every rank; if not, see `fault`.
        """
        if not self.fault and size > self._capacity:
            self._capacity = -(-size // _ALIGNMENT) * _ALIGNMENT
            yield from self._make()
        return not self.fault

    def mine(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Where this rank writes next, [numel]."""
        return self._next(self._comm.rank)[: numel * dtype.itemsize].view(dtype)

    def meet(self) -> Phases[list[Tensor]]:
        """What every rank has written, as bytes in rank order; to be read before the next is."""
        yield from self._swap(_BYTE)
        found = [self._next(rank) for rank in range(self._comm.world_size)]
        self._half = 1 - self._half
        return found

    def _next(self, rank: int) -> Tensor:
        start = _ALIGNMENT + self._half * self._capacity
        return self._pieces[rank][start : start + self._capacity]

    def _make(self) -> Phases[None]:
        """Make a piece, tell the others where it is, and find theirs."""
        file, key, size = -1, uuid4().bytes, _ALIGNMENT + 2 * self._capacity
        try:
            file = _reserved(size, key)
        except OSError as error:
            self.fault = str(error)
        try:
            places = yield from self._swap(
                host.from_bytes(_PLACE.pack(os.getpid(), file, size, key))
            )
            self._pieces = []
            try:
                self._pieces = [_opened(host.to_bytes(place)) for place in places]
            except (OSError, RuntimeError, ValueError) as error:
                self.fault = self.fault or str(error)
            faults = yield from self._swap(_BYTE if not self.fault else _BYTE + 1)
        finally:
            if file >= 0:
                os.close(file)
        if any(map(bool, faults)):
            self.fault = self.fault or "another rank has none"

    def _swap(self, body: Tensor) -> Phases[list[Tensor]]:
        ranks = self._comm.world_size
        return self._comm.all_to_all([body] * ranks, [len(body)] * ranks)


def _reserved(size: int, key: bytes) -> int:
    """A file of memory that is really there, so that no later write fails."""
    file = os.memfd_create("ddp_compress")
    try:
        os.posix_fallocate(file, 0, size)
        os.write(file, key)
    except OSError:
        os.close(file)
        raise
    return file


def _opened(place: bytes) -> Tensor:
    """A rank's piece [size], uint8.

    Raises:
        OSError, RuntimeError, ValueError: it is none of this host's.
    """
    process, file, size, key = _PLACE.unpack(place)
    path = f"/proc/{process}/fd/{file}"
    if os.stat(path).st_size != size:
        raise ValueError(f"{path} is another file")
    piece = torch.from_file(path, shared=True, size=size, dtype=torch.uint8, device="cpu")
    if host.to_bytes(piece[: len(key)]) != key:
        raise ValueError(f"{path} is another rank's")
    return piece
