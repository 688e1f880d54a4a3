"""Collectives: every one is called here, and counted but for those of the first meeting."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_compress.ops.devices import to_host
from ddp_compress.stages import enter
from ddp_compress.stats import Traffic
from ddp_compress.transport.agreed import Agreed
from ddp_compress.transport.frame import body_text, text_body
from ddp_compress.transport.groups import (
    backends,
    check_host_backend,
    members,
    new_group,
    rank_and_size,
)
from ddp_compress.transport.lifetimes import KeptAlive
from ddp_compress.transport.phases import Phases, Work


class PeerError(RuntimeError):
    """A rank could not take part in a step. Raised on every rank; no state has changed."""


class Comm:
    """One rank's view of its process group, for the messages of one state.

    Args:
        group: the process group; None for the default one. Without torch.distributed this rank
            is alone.
        traffic: where to count.
        device: of the model.
        has_large_sender: see `recipe.Exchange`.
        alone: whether to do without the others, as where there are none.

    Attributes:
        alone: whether there are none.
        device: see above.
        agreed: what all ranks know alike.
        names: the numbers by which errors call the ranks, in rank order.
        large_sender: the rank whose frame is of another size in this step; None where none is.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        traffic: Traffic,
        device: torch.device,
        has_large_sender: bool = False,
        alone: bool = False,
    ) -> None:
        self.group = group
        self.traffic = traffic
        self.alone = alone or not dist.is_initialized()
        self.rank, self.world_size = (0, 1) if self.alone else rank_and_size(group)
        self.agreed = Agreed()
        self.names: Sequence[int] = range(self.world_size)
        self.large_sender: int | None = None
        self.device = device
        self._world = dist.group.WORLD
        self._is_own = False  # whether the group is this state's own
        self._ended = False
        self._has_large_sender = has_large_sender
        self._kept_alive = KeptAlive()

    @property
    def outdated(self) -> bool:
        """Whether torch.distributed was set up, or set up anew, since ranks have met."""
        return dist.group.WORLD is not self._world

    def begin_step(self) -> None:
        """Let go of the last step's tensors; see which rank sends most."""
        self._kept_alive.begin_step()
        turn = self.agreed.step % self.world_size
        self.large_sender = turn if self._has_large_sender else None

    def agree(
        self,
        describe: Callable[[], str],
        density: float,
        step: int,
        prepare: Callable[[], None] = lambda: None,
    ) -> str:
        """Before the first step, compare descriptions of the setting, density and step included.

        Before that every rank prepares for the step by itself.

        Returns:
            A name that no ranks have agreed on before, for `own` or `part`.

        Raises:
            PeerError: on every rank, where one differs, or failed to prepare or describe.
        """
        self.agreed.density, self.agreed.step = density, step

        def prepared() -> str:
            if not self.alone:
                check_host_backend(self.group)
            prepare()
            return describe()

        return self.compare(prepared)

    def own(self, name: str) -> None:
        """Go on with a group of this state's own, which all ranks make together.

        From then on collectives run on that, from the host's memory: a thread beside the caller's
        may launch them, none of them is a kernel that others on a GPU may wait for, and to end it
        tells the other ranks where nothing else can (`close`).

        Args:
            name: what they have agreed on.

        Raises:
            PeerError: this rank finds no way to the others.
        """
        if not self.alone:
            self._open(members(self.group), self._host_backend, name)

    def part(
        self, ranks: Sequence[int], name: str, traffic: Traffic, backend: str | None = None
    ) -> Comm:
        """The same among some of the ranks alone.

        Args:
            ranks: as the whole job numbers them, this one among them.
            name: what these ranks, and no others, have agreed on.
            traffic: where to count.
            backend: None for that of the host's memory.

        Raises:
            PeerError: see `own`.
        """
        part = copy.copy(self)
        part.traffic, part.agreed = traffic, copy.deepcopy(self.agreed)
        part._kept_alive = KeptAlive()
        numbers = dict(zip(members(self.group), self.names, strict=True))
        part.names = [numbers[rank] for rank in ranks]
        part._open(ranks, backend or self._host_backend, name)
        return part

    @property
    def device_backend(self) -> str | None:
        """What talks for tensors on the model's GPU without the host; None where nothing does.

        Where the job's group is bound to a device, torch splits new ones off it, and waits for all
        of its ranks: those of a smaller group then go through the host.
        """
        world = dist.group.WORLD
        bound = getattr(world, "bound_device_id", None) is not None
        if bound and self.world_size < dist.get_world_size():
            return None
        backend = backends(self.group).get(self.device.type)
        return backend if self.device.type != "cpu" and backend != "gloo" else None

    @property
    def place(self) -> torch.device:
        """Where tensors must be for the group to send them: on the host, if it can."""
        return torch.device("cpu") if "cpu" in backends(self.group) else self.device

    @property
    def _host_backend(self) -> str:
        return backends(self.group).get("cpu", "gloo")

    def _open(self, ranks: Sequence[int], backend: str, name: str) -> None:
        try:
            group = new_group(self.group, ranks, backend, name)
        except RuntimeError as error:
            raise PeerError(
                f"no way to the other ranks ({error}): they have ended, or Gloo looks for them on "
                "the wrong network: export GLOO_SOCKET_IFNAME with the name of the interface "
                "between hosts"
            ) from error
        self.group, self._is_own = group, True
        self.rank, self.world_size = rank_and_size(group)

    def compare(self, describe: Callable[[], str]) -> str:
        """Compare descriptions by words.

        Returns:
            A name that no ranks have agreed on before.

        Raises:
            PeerError: see `agree`.
        """
        name, failure = uuid4().hex, None
        try:
            description = describe()
        except Exception as error:  # perhaps on this rank alone: the others must hear of it
            description, failure = f"failed: {type(error).__name__}: {error}", error
        if self.alone:
            if failure is not None:
                raise failure
            return name
        answers = self.share_text(name + description)
        every = [answer[len(name) :] for answer in answers]
        first = self.names[0]
        for rank, other in zip(self.names, every, strict=True):
            if other != every[0]:
                raise PeerError(
                    f"ranks must compress alike, but rank {rank} differs from rank {first}:\n"
                    f"  rank {first}: {every[0]}\n  rank {rank}: {other}"
                ) from failure
        if failure is not None:
            raise failure
        return answers[0][: len(name)]

    def share_text(self, text: str) -> list[str]:
        """Every rank's text, in rank order; `all_gather_object` needs numpy, which torch lacks."""
        mine = text_body(text).to(self.place)
        length = torch.tensor([len(mine)], dtype=torch.int64, device=self.place)
        sizes = self._swap(length, [1] * self.world_size).tolist()
        return [body_text(body) for body in self._swap(mine, sizes).split(sizes)]

    def _swap(self, mine: Tensor, sizes: list[int]) -> Tensor:
        """Everything to all, waited for and not counted; so many elements come from every rank."""
        given, theirs = mine.repeat(self.world_size), mine.new_empty(sum(sizes))
        self._kept_alive.add(given, theirs)
        lengths = [len(mine)] * self.world_size
        with _no_answer():
            dist.all_to_all_single(theirs, given, sizes, lengths, group=self.group)
        return to_host(theirs)

    def close(self) -> None:
        """End the group. The ranks need not do it together; those that go on get an error."""
        self._ended = True
        if self._is_own and self.group in dist.distributed_c10d._world.pg_map:
            dist.destroy_process_group(self.group)
        self.group = None  # with the last reference to it, its connections end

    @contextmanager
    def or_end(self) -> Iterator[None]:
        """For what may fail on this rank alone and cannot be told: nobody is to wait for us."""
        try:
            yield
        except Exception:
            self.close()
            raise

    def all_to_all(self, bodies: Sequence[Tensor], sizes: Sequence[int]) -> Phases[list[Tensor]]:
        """Send a body to every rank.

        At a few ranks this is also the quickest all-gather: Gloo's own passes messages round a
        ring, whose latency grows with the ranks.

        Args:
            bodies: W of uint8, in rank order, on the host.
            sizes: bytes to come from every rank, [W].

        Returns:
            What every rank sent to this one.

        Raises:
            PeerError: a rank has ended, has closed its state, or came too late.
        """
        if self.alone:
            enter("decode")
            return list(bodies)
        self._check_open()
        with self.or_end():
            mine, theirs = self._room(bodies, sum(sizes))
        yield from self.swap(mine, theirs, [len(body) for body in bodies], sizes)
        return list(theirs.split(list(sizes)))

    def swap(
        self, mine: Tensor, theirs: Tensor, lengths: Sequence[int], sizes: Sequence[int]
    ) -> Phases[None]:
        """An all-to-all of tensors of any dtype, in memory of the caller's.

        Args:
            mine: what is sent, rank by rank.
            theirs: where what comes is put, rank by rank.
            lengths: elements to be sent to every rank, [W].
            sizes: elements to come from every rank, [W].

        Raises:
            PeerError: see `all_to_all`.
        """
        launch = partial(
            dist.all_to_all_single, theirs, mine, list(sizes), list(lengths), async_op=True
        )
        sent, received = len(mine) - lengths[self.rank], len(theirs) - sizes[self.rank]
        yield from self._run(launch, mine, theirs, sent, received)

    def gather(self, mine: Tensor, theirs: Tensor) -> Phases[None]:
        """Every rank's tensor [n] of one size, put side by side: [W n].

        Raises:
            PeerError: see `all_to_all`.
        """
        launch = partial(_all_gather, theirs, mine, async_op=True)
        others = len(theirs) - len(mine)
        yield from self._run(launch, mine, theirs, others, others)

    def _run(
        self,
        launch: Callable[..., Work],
        mine: Tensor,
        theirs: Tensor,
        sent: int,
        received: int,
    ) -> Phases[None]:
        """Launch a collective, count its elements that leave and come, and wait for it."""
        self._check_open()
        self._kept_alive.add(mine, theirs)
        with self.or_end(), _no_answer():
            work = launch(group=self.group)
        self.traffic.collective(sent * mine.itemsize, received * theirs.itemsize)
        yield work
        enter("wait")
        with self.or_end(), _no_answer():
            work.wait()
        enter("decode")

    def _check_open(self) -> None:
        if self._ended:
            raise PeerError(
                "the exchange with other ranks has ended: make a new state on all ranks"
            )

    def _room(self, bodies: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor]:
        """What is sent in one piece, and memory for what will come."""
        mine = torch.cat(list(bodies))
        return mine, mine.new_empty(size, pin_memory=self.device.type == "cuda")

    def all_reduce(self, tensor: Tensor) -> Phases[Tensor]:
        """The sum over ranks of tensors [n], the same bits on every rank.

        Every rank sums the part that it owns and sends it to all: two collectives, and the bytes
        of a ring. Half types are summed in fp32 and rounded once.
        """
        wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
        with self.or_end():
            parts = [
                part.contiguous().view(torch.uint8) for part in tensor.tensor_split(self.world_size)
            ]
        given = yield from self.all_to_all(parts, [len(parts[self.rank])] * self.world_size)
        with self.or_end():
            total = torch.stack([each.view(tensor.dtype) for each in given]).sum(0, dtype=wide)
            mine = total.to(tensor.dtype).view(torch.uint8)
        sums = yield from self.all_to_all([mine] * self.world_size, [len(p) for p in parts])
        with self.or_end():
            return torch.cat(sums).view(tensor.dtype)


# Its name since torch 2.13, where the older one warns.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@contextmanager
def _no_answer() -> Iterator[None]:
    """What a process group says of ranks that do not answer, in words of ours."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerError(
            "a rank does not answer: it has ended, has closed its state, met an error outside the "
            "exchange, did not make a call that is every rank's, such as to save, or took longer "
            f"than the process group's timeout ({error})"
        ) from error
