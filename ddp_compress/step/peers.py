"""The other ranks, which a state meets before its first step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist  # noqa: TID251 - types alone

from ddp_compress.recipe import Exchange
from ddp_compress.stats import Stats
from ddp_compress.step.worker import Worker
from ddp_compress.transport.comm import Comm

CLOSED = "this state was closed: make a new one, or close it later"


class Peers:
    """The ranks that a state exchanges with: a state may be built before its process group.

    Args:
        group: their process group; None for the DDP model's, or the default one.

    Attributes:
        given: see above.
        group: theirs, as far as it is known.
        comm: the exchange with them; None before they have met.
        worker: the thread on which exchanges run; None where none is needed.
        saved_by: rank and world size, of a checkpoint that was loaded; None where anybody may go
            on.
        loaded_density: of the latest step in it.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = self.given = group
        self.comm: Comm | None = None
        self.worker: Worker | None = None
        self.saved_by: list[int] | None = None
        self.loaded_density: float | None = None
        self._ends: list[Callable[[], None]] = []
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        """What is known of them, but none of what cannot leave the process."""
        gone = dict.fromkeys(("group", "given", "comm", "worker"))
        known = {"saved_by": self.rank_and_size, "loaded_density": self.latest_density}
        return self.__dict__ | gone | known | {"_ends": [], "_closed": False}

    @property
    def rank_and_size(self) -> list[int] | None:
        """Of this rank, where it has met the others; None where nothing is kept."""
        return self.saved_by if self.comm is None else [self.comm.rank, self.comm.world_size]

    @property
    def latest_density(self) -> float | None:
        """Of the latest step, as far as the ranks have agreed."""
        return self.loaded_density if self.comm is None else self.comm.agreed.density

    @property
    def have_met(self) -> bool:
        """Whether they have, since torch.distributed was set up, and may go on."""
        return self.comm is not None and not self.comm.outdated and not self._closed

    def meet(
        self,
        exchange: Exchange,
        device: torch.device,
        stats: Stats,
        prepare: Callable[[], None],
        describe: Callable[[], str],
        density: float,
        step: int,
    ) -> None:
        """Meet them.

        Args:
            exchange: the recipe's.
            device: of the model.
            stats: where to count.
            prepare: what this rank is to do before, with a worker at hand; it may fail.
            describe: what all ranks must share, in words.
            density: of the next step.
            step: the next.

        Raises:
            PeerError: on every rank, where one differs, or has failed to prepare.
            RuntimeError: the state was closed.
        """
        if self._closed and self.comm is not None:
            raise RuntimeError(CLOSED)
        # To wait for a CUDA device is the worker's business: backward goes on meanwhile.
        if exchange.many_phase or device.type == "cuda":
            self.worker = self.worker or Worker(device)
        comm = Comm(self.group, stats, device, exchange.has_large_sender)
        # As in an undisturbed run, where the latest step's says where messages of the next end.
        latest = self.loaded_density or density
        comm.agree(partial(self._describe, describe), latest, step, prepare)
        self.comm = comm

    def _describe(self, describe: Callable[[], str]) -> str:
        if self._closed:
            raise RuntimeError(CLOSED)
        return f"{describe()}, loaded density {self.loaded_density}"

    def loaded(self, saved_by: list[int] | None, density: float | None, stats: Stats) -> None:
        """A checkpoint was loaded: whose it was, its latest density, and its statistics."""
        self.saved_by, self.loaded_density = saved_by, density
        if self.comm is not None:
            self.comm.stats = stats

    def forget_messages(self) -> None:
        """Memory is another: what the last step's messages taught is of no use."""
        if self.comm is not None:
            self.comm.agreed.committed.clear()

    def check_place(self) -> None:
        """Raise where a checkpoint that was loaded is another rank's.

        Raises:
            ValueError: see above.
        """
        if self.saved_by is None:
            return
        here = self.rank_and_size
        if here is None or self.saved_by == here:
            return
        raise ValueError(
            f"checkpoint was saved by rank {self.saved_by[0]} of {self.saved_by[1]}, this is rank "
            f"{here[0]} of {here[1]}: what other ranks kept would be lost. Load it on the same "
            "rank of as many, or see ddp_compress.redistribute"
        )

    def ends_with(self, end: Callable[[], None]) -> None:
        """Let `close` call a function too."""
        self._ends.append(end)

    def close(self) -> None:
        """End the thread and the process group, and what else was opened for these ranks."""
        self._closed = True
        if self.worker is not None:
            self.worker.close()
        if self.comm is not None:
            self.comm.close()
        for end in self._ends:
            end()
