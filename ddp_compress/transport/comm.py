"""Collectives: every one is called here, and counted but for those of the first meeting."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_compress.ops.devices import to_host
from ddp_compress.stats import Stats
from ddp_compress.transport.agreed import Agreed
from ddp_compress.transport.frame import body_text, text_body
from ddp_compress.transport.groups import (
    backends,
    check_host_backend,
    host_twin_of,
    rank_and_size,
)
from ddp_compress.transport.lifetimes import KeptAlive
from ddp_compress.transport.phases import Phases


class PeerError(RuntimeError):
    """A rank could not take part in a step. Raised on every rank; no state has changed."""


class Comm:
    """One rank's view of its process group, for the messages of one state.

    Args:
        group: the process group; None for the default one. Without torch.distributed this rank
            is alone.
        stats: where to count.
        device: of the model.
        has_large_sender: see `recipe.Exchange`.
        alone: whether to do without the others, as where there are none.

    Attributes:
        agreed: what all ranks know alike.
        large_sender: the rank whose frame is of another size in this step; None where none is.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        stats: Stats,
        device: torch.device,
        has_large_sender: bool,
        alone: bool = False,
    ) -> None:
        self.group = group
        self.stats = stats
        self._alone = alone or not dist.is_initialized()
        self.rank, self.world_size = (0, 1) if self._alone else rank_and_size(group)
        self.agreed = Agreed()
        self.large_sender: int | None = None
        self._device = device
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
    ) -> None:
        """Before the first step, compare descriptions of the setting, density and step included.

        Before that every rank prepares for the step by itself.

        From then on collectives run on a group of this state's own, from the host's memory: a
        thread beside the caller's may launch them, none of them is a kernel that others on a GPU
        may wait for, and to end it tells the other ranks where nothing else can (`close`).

        Raises:
            PeerError: on every rank, where one differs, or failed to prepare or describe.
        """
        self.agreed.density, self.agreed.step = density, step
        if self._alone:
            prepare()
            return

        def prepared() -> str:
            check_host_backend(self.group)
            prepare()
            return describe()

        name = self.compare(prepared)
        try:
            self.group, self._is_own = host_twin_of(self.group, name), True
        except RuntimeError as error:
            raise PeerError(
                f"no way to the other ranks ({error}): they have ended, or Gloo looks for them on "
                "the wrong network: export GLOO_SOCKET_IFNAME with the name of the interface "
                "between hosts"
            ) from error

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
        if self._alone:
            if failure is not None:
                raise failure
            return name
        answers = self._share(name + description)
        every = [answer[len(name) :] for answer in answers]
        for rank, other in enumerate(every):
            if other != every[0]:
                raise PeerError(
                    f"ranks must compress alike, but rank {rank} differs from rank 0:\n"
                    f"  rank 0: {every[0]}\n  rank {rank}: {other}"
                ) from failure
        if failure is not None:
            raise failure
        return answers[0][: len(name)]

    def _share(self, text: str) -> list[str]:
        """Every rank's text, in rank order; `all_gather_object` needs numpy, which torch lacks."""
        place = torch.device("cpu") if "cpu" in backends(self.group) else self._device
        mine = text_body(text).to(place)
        length = torch.tensor([len(mine)], dtype=torch.int64, device=place)
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
        if self._alone:
            return list(bodies)
        if self._ended:
            raise PeerError(
                "the exchange with other ranks has ended: make a new state on all ranks"
            )
        with self.or_end():
            mine, theirs = self._room(bodies, sum(sizes))
        lengths = [len(body) for body in bodies]
        self._kept_alive.add(mine, theirs)
        with self.or_end(), _no_answer():
            work = dist.all_to_all_single(
                theirs, mine, list(sizes), lengths, group=self.group, async_op=True
            )
        self.stats.collective(
            sent=len(mine) - lengths[self.rank], received=len(theirs) - sizes[self.rank]
        )
        yield work
        with self.or_end(), _no_answer():
            work.wait()
        return list(theirs.split(list(sizes)))

    def _room(self, bodies: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor]:
        """What is sent in one piece, and memory for what will come."""
        mine = torch.cat(list(bodies))
        return mine, mine.new_empty(size, pin_memory=self._device.type == "cuda")

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


@contextmanager
def _no_answer() -> Iterator[None]:
    """What a process group says of ranks that do not answer, in words of ours."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerError(
            f"a rank does not answer: it has ended, has closed its state, met an error outside the "
            f"exchange, or took longer than the process group's timeout ({error})"
        ) from error
