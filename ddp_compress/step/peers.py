"""The other ranks, which a state meets before its first step."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist  # noqa: TID251 - types alone

from ddp_compress.checkpoints.checkpoint import Part
from ddp_compress.recipe import Exchange
from ddp_compress.stats import Stats
from ddp_compress.step.node import Node
from ddp_compress.step.replica import Replica
from ddp_compress.step.worker import Worker
from ddp_compress.transport.comm import Comm, PeerError
from ddp_compress.transport.groups import members, rank_and_size
from ddp_compress.transport.nodes import Claim, Within, claim, lasting, nodes_of
from ddp_compress.transport.two_levels import meet_and_own

CLOSED = "this state was closed: make a new one, or close it later"


class Peers:
    """The ranks that a state exchanges with: a state may be built before its process group.

    Args:
        group: their process group; None for the DDP model's, or the default one.
        within: which of them share a node, see `CompressionState`.
        shards: the ranks with which this one holds a sharded model, itself included; None where it
            has all of it.

    Attributes:
        given: see above.
        within: see above.
        group: theirs, as far as it is known.
        shards: see above.
        comm: the exchange of what was compressed: with them, or with one rank of every node; None
            before they have met.
        replica: the ranks with which this one holds a gradient together; None where it has its own.
        worker: the thread on which exchanges run; None where none is needed.
        saved_by: rank and world size, of a checkpoint that was loaded; None where anybody may go
            on.
        loaded_density: of the latest step in it.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        within: Within | None = None,
        shards: dist.ProcessGroup | None = None,
    ) -> None:
        self.group = self.given = group
        self.comm: Comm | None = None
        self.replica: Replica | None = None
        self.saved_part: Part | None = None
        self.within = within
        self.shards = shards
        self.worker: Worker | None = None
        self.saved_by: list[int] | None = None
        self.loaded_density: float | None = None
        self._ends: list[Callable[[], None]] = []
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        """What is known of them, but none of what cannot leave the process."""
        gone = dict.fromkeys(("group", "given", "comm", "replica", "worker"))
        known = {
            "saved_by": self.rank_and_size,
            "saved_part": self.part,
            "loaded_density": self.latest_density,
            "within": lasting(self.within),
        }
        return self.__dict__ | gone | known | {"_ends": [], "_closed": False}

    @property
    def rank_and_size(self) -> list[int] | None:
        """Of this rank, where it has met the others; None where nothing is kept."""
        return self.saved_by if self.comm is None else [self.comm.rank, self.comm.world_size]

    @property
    def comms(self) -> list[Comm]:
        """Every exchange there is."""
        assert self.comm is not None
        return [self.comm, *(self.replica.comms if self.replica else ())]

    @property
    def part(self) -> Part | None:
        """Which part of every parameter is this rank's; None for all of it, or before they met."""
        if self.comm is None:
            return self.saved_part
        return None if self.replica is None else self.replica.part

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
        weights: int | None = None,
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
            weights: a number that models of equal weights share, where they must be equal and
                nobody has made them so.

        Raises:
            PeerError: on every rank, where one differs, or has failed to prepare.
            RuntimeError: the state was closed.
        """
        if self._closed and self.comm is not None:
            raise RuntimeError(CLOSED)
        # To wait for a CUDA device is the worker's business: backward goes on meanwhile.
        if exchange.many_phase or device.type == "cuda" or self.within is not None:
            self.worker = self.worker or Worker(device)
        self.replica = None
        comm = Comm(self.group, stats, device, exchange.has_large_sender)
        # As in an undisturbed run, where the latest step's says where messages of the next end.
        latest = self.loaded_density or density
        own: list[Claim] = []

        def described() -> str:
            if self._closed:
                raise RuntimeError(CLOSED)
            if self.within is not None and not comm.alone:
                own.append(claim(self.within))
            nodes = "of nodes" if self.within is not None else "flat"
            if self.shards is not None:
                nodes = "of shard {} of {}".format(*rank_and_size(self.shards))
            return f"{describe()}, loaded density {self.loaded_density}, exchange {nodes}"

        def between() -> str:
            name = comm.agree(described, latest, step, prepare)
            if weights is not None:
                _check_equal_weights(comm, weights)
            return name

        if self.shards is not None:
            inside = Comm(self.shards, stats.within, device)
            meet_and_own(comm, inside, between, f"step {step}", latest, step)
            self.comm, self.replica = comm, Replica(inside)
            return
        name = between()
        if own:
            self.comm, self.replica = self._nodes(comm, own[0], name, stats)
        else:
            comm.own(name)
            self.comm = comm

    def _nodes(
        self, whole: Comm, own: Claim, name: str, stats: Stats
    ) -> tuple[Comm, Replica | None]:
        """The exchange between nodes, and this rank's node; None where it has one for itself."""
        claims = [Claim.of(text) for text in whole.share_text(own.text())]
        try:
            nodes = nodes_of(claims, members(whole.group), found=self.within == "node")
        except ValueError as error:  # alike on every rank
            raise PeerError(str(error)) from error
        here = dist.get_rank()
        node = next(node for node in nodes if here in node)
        if len(node) == 1:
            whole.own(name)
            return whole, None
        place = node.index(here)
        between = whole.part([each[place] for each in nodes], f"{name}/{place} of nodes", stats)
        inside, backend = f"{name}/node of {node[0]}", whole.device_backend
        comm = whole.part(node, inside, stats.within)
        on_device = (
            whole.part(node, f"{inside}, {backend}", stats.within, backend) if backend else None
        )
        return between, Node(comm, on_device, whole.device)

    def loaded(
        self, saved_by: list[int] | None, part: Part | None, density: float | None, stats: Stats
    ) -> None:
        """A checkpoint was loaded: whose it was, its latest density, and its statistics."""
        self.saved_by, self.saved_part, self.loaded_density = saved_by, part, density
        if self.comm is not None:
            self.comm.traffic = stats
        if self.replica is not None:
            self.replica.count_in(stats.within)

    def forget_messages(self) -> None:
        """Memory is another: what the last step's messages taught is of no use."""
        if self.comm is not None:
            self.comm.agreed.committed.clear()

    def check_place(self) -> None:
        """Raise where a checkpoint that was loaded is another rank's.

        Raises:
            ValueError: see above.
        """
        if self.saved_by is None and self.saved_part is None:
            return
        then, here = (self.saved_by, self.saved_part), (self.rank_and_size, self.part)
        if here == (None, None) or then == here:
            return
        raise ValueError(
            f"checkpoint was saved by {_place(*then)}, this is {_place(*here)}: what other ranks "
            "kept would be lost. Load it on the same rank of as many, or see "
            "ddp_compress.redistribute. (What saves rank 0's state alone, as Lightning, Fabric and "
            "Accelerate do, wants ddp_compress.AllRanks(state).)"
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
        if self.replica is not None:
            self.replica.close()
        for end in self._ends:
            end()


def _check_equal_weights(comm: Comm, weights: int) -> None:
    """Compare the weights of replicas.

    Raises:
        PeerError: on every rank, where they differ.
    """
    every = comm.share_text(str(weights))
    for rank, theirs in zip(comm.names, every, strict=True):
        if theirs != every[0]:
            raise PeerError(
                f"replicas must start equal, but the weights on rank {rank} are not those on rank "
                f"{comm.names[0]}: FSDP, unlike DDP, broadcasts none. Seed every rank alike before "
                "the model is made, or load the same checkpoint on all of them"
            )


def _place(rank_and_size: list[int] | None, part: Part | None) -> str:
    """Whose a checkpoint is, in words."""
    words = "rank {} of {}".format(*rank_and_size) if rank_and_size else "any rank"
    return words if part is None else "{}, {} {} of {}".format(words, *part)
