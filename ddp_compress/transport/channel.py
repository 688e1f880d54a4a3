"""One message's way through its phases, in each of which ranks compare their headers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host
from ddp_compress.stages import enter
from ddp_compress.stats import Stats
from ddp_compress.transport.comm import Comm, PeerError
from ddp_compress.transport.frame import (
    ANNOUNCED,
    FAILED,
    HEADER_BYTES,
    NONFINITE,
    Header,
    announce,
    body_text,
    padded,
    seal,
    text_body,
    unseal,
)
from ddp_compress.transport.phases import Phases


class Channel:
    """The ranks' talk about one message.

    What a phase sends is built by a function. If it raises, on this rank or on another, every rank
    raises a `PeerError`; nobody waits for a message that never comes.

    Every rank sends frames of an agreed size, the *capacity*, which all ranks work out alike from
    the headers they have all seen. A rank whose frame does not fit announces its length, and all
    follow with one larger collective. So messages of any size meet, and steady sizes cost one
    collective.

    Args:
        comm: the other ranks.
        number: of the message in its step.
        density: of this step; ranks must agree.
        must_share: gives anything whose repr ranks must share: recipe, plan, loss scale, the
            period of local steps. Called where the exchange runs, which may wait for a device.
        layout_digest: of the plan's layout, whatever its density.
        step: of the state; ranks must agree.

    Attributes:
        rank: this rank's number.
        world_size: how many ranks there are, W.
        pending: what the next message of this layout may build upon, if the step commits.
        aside: bytes that travel behind the first body, as many from every rank; None for none.
        heard: those of all ranks, in rank order, once they have come.
    """

    def __init__(
        self,
        comm: Comm,
        number: int,
        density: float,
        must_share: Callable[[], object],
        layout_digest: int,
        step: int,
    ) -> None:
        self.rank = comm.rank
        self.world_size = comm.world_size
        self._comm = comm
        self._number = number
        self._density = density
        self._must_share = must_share
        self._layout_digest = layout_digest
        self._step = step
        self._phase = 0
        self._failure: BaseException | None = None
        self.pending: dict[str, Any] = {}
        self.aside: Tensor | None = None
        self.heard: list[Tensor] = []

    @classmethod
    def failing(cls, comm: Comm, number: int, step: int) -> Channel:
        """For a message that this rank could not make; see `report`."""
        return cls(comm, number, 0.0, lambda: None, 0, step)

    @property
    def stats(self) -> Stats:
        """Where to count entries."""
        assert isinstance(self._comm.traffic, Stats), "no entries travel inside a node"
        return self._comm.traffic

    @cached_property
    def _digest(self) -> int:
        return zlib.crc32(repr(self._must_share()).encode())

    @property
    def committed(self) -> dict[str, Any]:
        """What the last committed message of this layout has taught."""
        layout, known = self._comm.agreed.committed.get(self._number, (None, {}))
        return known if layout == self._layout_digest else {}

    def commit(self) -> None:
        """Keep what this message teaches the next."""
        self._comm.agreed.committed[self._number] = (self._layout_digest, self.pending)

    def attempt(self, work: Callable[[], Tensor]) -> Tensor:
        """What some work between two phases gives; if it raises, the next phase tells."""
        try:
            return work()
        except Exception as error:
            self._failure = error
            return host.empty(0, dtype=torch.int32)

    def share(self, build: Callable[[], Tensor | None]) -> Phases[list[Tensor] | None]:
        """Send one body to all ranks.

        Args:
            build: gives the body [B], uint8; B may differ between ranks. None where a gradient is
                not finite.

        Returns:
            The bodies of the W ranks, in rank order; None where a rank had none.

        Raises:
            PeerError: on every rank, where one failed or differs.
            ValueError: a message is corrupt.
        """
        self._phase += 1
        mine = self._frame_of(build)
        self._comm.traffic.payload_bits += 8 * len(mine)
        try:
            opened = yield from self._meet(mine)
        except PeerError as error:
            raise error from self._failure
        headers, bodies = zip(*opened, strict=True)  # every rank has seen all headers now
        _check_equal(headers, self._comm.names)
        aborts = any(header.flags & NONFINITE for header in headers)
        agreed = self._comm.agreed
        agreed.density, agreed.step = self._density, self._step + (not aborts)
        return None if aborts else self._without_aside(bodies)

    def route(self, build: Callable[[], Sequence[Tensor] | None]) -> Phases[list[Tensor] | None]:
        """Send a body of its own to every rank, after a manifest of lengths and CRC-32s.

        Args:
            build: gives W bodies, uint8; None where a gradient is not finite.

        Returns:
            What the W ranks sent to this one, in rank order; None where a rank had nothing.

        Raises:
            PeerError: as in `share`. A corrupt body fails in the next phase.
        """
        bodies: list[Tensor] = []

        def manifest() -> Tensor | None:
            built = build()
            if built is None:
                return None
            bodies.extend(map(to_host, built))
            lines = [(len(body), host.crc32(body)) for body in bodies]
            return (
                host.tensor(lines, dtype=torch.int64).flatten().to(torch.uint32).view(torch.uint8)
            )

        manifests = yield from self.share(manifest)
        if manifests is None:
            return None
        lines = [each.clone().view(torch.uint32).long().view(-1, 2) for each in manifests]
        sizes, crcs = zip(*(each[self.rank].tolist() for each in lines), strict=True)
        self._comm.traffic.payload_bits += sum(8 * len(body) for body in bodies)
        arrived = yield from self._comm.all_to_all(bodies, sizes)
        for rank, body, crc in zip(self._comm.names, arrived, crcs, strict=True):
            if host.crc32(body) != crc:
                self._failure = ValueError(f"rank {rank}: message is corrupt: bad CRC-32")
        return arrived

    def sum(self, build: Callable[[], Tensor], numel: int) -> Phases[Tensor]:
        """The sum over ranks of counts [numel], int32. If a rank failed, the next phase tells."""
        with self._comm.or_end():
            counts = host.zeros(numel, dtype=torch.int32)
        self._fill(counts, build)
        return (yield from self._comm.all_reduce(counts))

    def mean(
        self, build: Callable[[], Tensor], numel: int, dtype: torch.dtype
    ) -> Phases[tuple[Tensor, Tensor]]:
        """The mean over ranks of values [numel], by an all-reduce in a floating-point dtype.

        Values are divided by W before they are summed, so that no sum overflows; what is too large
        for the dtype is sent as its largest number.

        Returns:
            What this rank sent, and the mean, the same bits on every rank.

        Raises:
            PeerError: on every rank, where one failed.
        """
        limit = 0.99 * torch.finfo(dtype).max  # less than all of it: shares are rounded
        with self._comm.or_end():
            share = host.full((numel,), torch.nan, dtype=dtype)
        # On the host: a GPU would multiply by 1 / W, which rounds otherwise.
        self._fill(share, lambda: to_host(build()).clamp(-limit, limit) / self.world_size)
        mean = yield from self._comm.all_reduce(share)
        if not mean.isfinite().all():  # alike on every rank: whoever failed says why in a phase
            yield from self.share(lambda: None)
            raise PeerError("a rank failed while values were averaged")
        return share * self.world_size, mean

    def _fill(self, value: Tensor, build: Callable[[], Tensor]) -> None:
        """Copy what is built, unless something fails."""
        enter("encode")
        self._comm.traffic.payload_bits += 8 * value.nbytes
        if self._failure is None:
            self.attempt(lambda: value.copy_(to_host(build())))

    def report(self, error: BaseException) -> Phases[None]:
        """Take part in a message that this rank failed to build, and tell every rank why.

        Raises:
            PeerError: always, on every rank, from ``error``.
        """
        self._failure = error
        yield from self.share(lambda: None)

    def fail_as(self, error: BaseException) -> Phases[None]:
        """Let a message fail as the one before it in its step: without a word where all know that.

        Args:
            error: of the one before, on every rank or on this one alone.

        Raises:
            PeerError: on every rank.
        """
        if isinstance(error, PeerError):
            raise error
        yield from self.report(error)

    def _frame_of(self, build: Callable[[], Tensor | None]) -> Tensor:
        """The next frame."""
        enter("encode")
        try:
            if self._failure is None:
                body = build()
                nothing = host.empty(0, dtype=torch.uint8)
                if body is None:
                    return self._seal(NONFINITE, nothing)
                return self._seal(0, self._with_aside(to_host(body)))
        except Exception as error:  # whatever it is, the other ranks must hear of it
            self._failure = error
        with self._comm.or_end():
            text = f"{type(self._failure).__name__}: {self._failure}"
            return self._seal(FAILED, text_body(text))

    def _with_aside(self, body: Tensor) -> Tensor:
        if self.aside is None or self._phase > 1:
            return body
        return torch.cat([body, self.aside])

    def _without_aside(self, bodies: Sequence[Tensor]) -> list[Tensor]:
        if self.aside is None or self._phase > 1:
            return list(bodies)
        ends = [len(body) - len(self.aside) for body in bodies]
        self.heard = [body[end:] for body, end in zip(bodies, ends, strict=True)]
        return [body[:end] for body, end in zip(bodies, ends, strict=True)]

    def _seal(self, flags: int, body: Tensor) -> Tensor:
        fingerprint = (self._digest + self._phase) & 0xFFFF
        length = HEADER_BYTES + len(body)
        return seal(Header(self._density, fingerprint, self._step, flags, length), body)

    def _meet(self, mine: Tensor) -> Phases[list[tuple[Header, Tensor]]]:
        """Exchange frames, in a second and larger collective where one does not fit."""
        comm = self._comm
        # By the agreed step, not this rank's: whoever is in another must still meet the others.
        large_sender = comm.large_sender if self._phase == 1 else None
        places = [
            (self._number, self._phase, rank == large_sender) for rank in range(self.world_size)
        ]
        room = [comm.agreed.capacity(place, HEADER_BYTES) for place in places]
        here = room[self.rank]
        with comm.or_end():
            frame = padded(mine, here) if len(mine) <= here else announce(mine, here)
        opened = yield from self._pass(frame, room)
        longest, announced = dict.fromkeys(places, 0), 0
        for place, (header, _) in zip(places, opened, strict=True):
            longest[place] = max(longest[place], header.length)
            announced |= header.flags & ANNOUNCED
        if announced:
            room = [longest[place] for place in places]
            with comm.or_end():
                frame = padded(mine, room[self.rank])
            opened = yield from self._pass(frame, room)
        for place, length in longest.items():
            comm.agreed.plan_capacity(place, length)
        return opened

    def _pass(self, frame: Tensor, sizes: list[int]) -> Phases[list[tuple[Header, Tensor]]]:
        frames = yield from self._comm.all_to_all([frame] * self.world_size, sizes)
        return [_open(rank, frame) for rank, frame in zip(self._comm.names, frames, strict=True)]


def _open(rank: int, frame: Tensor) -> tuple[Header, Tensor]:
    try:
        header, body = unseal(frame)
    except ValueError as error:
        raise ValueError(f"rank {rank}: {error}") from None
    if header.flags & FAILED and not header.flags & ANNOUNCED:
        name, _, words = body_text(body).partition(": ")
        if name == PeerError.__name__:  # which that rank has heard of another
            raise PeerError(words)
        raise PeerError(f"rank {rank} failed: {name}: {words}")
    return header, body


def _check_equal(headers: Sequence[Header], names: Sequence[int]) -> None:
    first = f"rank {names[0]}"
    for rank, header in zip(names[1:], headers[1:], strict=True):
        if header.setting != headers[0].setting:
            raise PeerError(
                f"ranks must compress alike, but rank {rank} differs from {first}: {first} has "
                f"{headers[0].words}; rank {rank} has {header.words}"
            )
