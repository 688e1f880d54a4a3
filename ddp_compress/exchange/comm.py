"""Collectives: every one of them is called here, and counted."""

from __future__ import annotations

import zlib
from collections.abc import Generator
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

from ddp_compress.exchange.frame import (
    ANNOUNCED,
    FAILED,
    HEADER_BYTES,
    Header,
    announce,
    body_text,
    padded,
    seal,
    text_body,
    unseal,
)
from ddp_compress.stats import Stats

# torch 2.13 renamed it; the old name warns there.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Work(Protocol):
    """A collective under way."""

    def wait(self) -> object:
        """Block until it is done."""


class PeerError(RuntimeError):
    """A rank could not take part in a step. Raised on every rank; no state has changed."""


class Comm:
    """One rank's view of its process group, for the messages of one state.

    Every rank sends frames of one size, the *capacity*, which all ranks work out alike from the
    headers they have all seen. A rank whose frame does not fit announces its length, and all
    follow with one larger collective. So messages of any size meet, and steady sizes cost one
    collective.

    Args:
        group: the process group; None for the default one. Without torch.distributed this rank
            is alone.
        stats: where to count.

    Attributes:
        density: the latest that all ranks are known to share. What must come out alike on every
            rank before the ranks have met, such as where a message ends, depends on it alone.
    """

    def __init__(self, group: dist.ProcessGroup | None, stats: Stats) -> None:
        self.group = group
        self.stats = stats
        alone = not dist.is_initialized()
        self.rank = 0 if alone else dist.get_rank(group)
        self.world_size = 1 if alone else dist.get_world_size(group)
        self.density = 1.0
        self._alone = alone
        self._capacities: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._next = 0
        # Were Gloo's thread the last to let go of a tensor that Python knows, it would need the
        # GIL, and destroying the group just then would deadlock (torch 2.13).
        self._alive: list[Tensor] = []

    @property
    def outdated(self) -> bool:
        """Whether torch.distributed was set up since this rank believed itself alone."""
        return self._alone and dist.is_initialized()

    def begin_step(self) -> None:
        """Number the step's messages from 0 again."""
        self._next = 0
        self._alive.clear()

    def agree(self, description: str, density: float) -> None:
        """Compare a description of the setting, density included, before the first step.

        Raises:
            PeerError: on every rank, where one differs.
        """
        self.density = density
        if self._alone:
            return
        every: list[str] = [""] * self.world_size
        dist.all_gather_object(every, description, group=self.group)
        for rank, other in enumerate(every):
            if other != every[0]:
                raise PeerError(
                    f"ranks must compress alike, but rank {rank} differs from rank 0:\n"
                    f"  rank 0: {every[0]}\n  rank {rank}: {other}"
                )

    def share(
        self, density: float, setting: object, step: int, flags: int, body: Tensor
    ) -> Generator[Work, None, list[tuple[Header, Tensor]]]:
        """Gather every rank's body.

        Args:
            density: of this step; ranks must agree.
            setting: anything whose repr ranks must share: recipe and layout.
            step: of the state; ranks must agree.
            flags: see `frame`.
            body: [B], uint8; B may differ between ranks.

        Returns:
            Header and body of each of the W ranks, in rank order.

        Raises:
            PeerError: on every rank, where one failed or differs.
            ValueError: a message is corrupt.
        """
        slot, self._next = self._next, self._next + 1
        fingerprint = zlib.crc32(repr(setting).encode()) & 0xFFFF
        mine = seal(Header(density, fingerprint, step, flags, HEADER_BYTES + len(body)), body)
        self.stats.payload_bits += 8 * len(mine)

        capacity = self._capacities.get(slot, HEADER_BYTES)
        fits = len(mine) <= capacity
        frames = yield from self._all_gather(
            padded(mine, capacity) if fits else announce(mine, capacity)
        )
        opened = [self._open(rank, frame) for rank, frame in enumerate(frames)]
        longest = max(header.length for header, _ in opened)
        if any(header.flags & ANNOUNCED for header, _ in opened):
            frames = yield from self._all_gather(padded(mine, longest))
            opened = [self._open(rank, frame) for rank, frame in enumerate(frames)]
        self._plan_capacity(slot, longest)
        self._check_alike([header for header, _ in opened])
        self.density = density
        return opened

    def report(self, error: Exception) -> Generator[Work, None, None]:
        """Take part in a message that this rank failed to build, and tell every rank why.

        Raises:
            PeerError: always, on every rank, from ``error``.
        """
        body = text_body(f"{type(error).__name__}: {error}")
        try:
            yield from self.share(0.0, None, 0, FAILED, body)
        except PeerError as known:
            raise known from error

    def _all_gather(self, frame: Tensor) -> Generator[Work, None, list[Tensor]]:
        if self._alone:
            return [frame]
        everyone = frame.new_empty(self.world_size * len(frame))
        self._alive += [everyone, frame]
        others = (self.world_size - 1) * len(frame)
        work = _all_gather_single(everyone, frame, group=self.group, async_op=True)
        self.stats.collective(sent=others, received=others)
        yield work
        work.wait()
        return list(everyone.split(len(frame)))

    def _open(self, rank: int, frame: Tensor) -> tuple[Header, Tensor]:
        try:
            header, body = unseal(frame)
        except ValueError as error:
            raise ValueError(f"rank {rank}: {error}") from None
        if header.flags & FAILED and not header.flags & ANNOUNCED:
            raise PeerError(f"rank {rank} failed: {body_text(body)}")
        return header, body

    def _plan_capacity(self, slot: int, longest: int) -> None:
        """Steady sizes get exactly what they need; varying ones 3 % of room."""
        steady = self._lengths.get(slot) == longest
        self._lengths[slot] = longest
        self._capacities[slot] = longest if steady else longest + longest // 32

    def _check_alike(self, headers: list[Header]) -> None:
        def setting(header: Header) -> str:
            return (
                f"density {header.density:.6g}, step {header.step} (mod 256), "
                f"recipe and layout #{header.fingerprint:04x}"
            )

        for rank, header in enumerate(headers):
            if setting(header) != setting(headers[0]):
                raise PeerError(
                    f"ranks must compress alike, but rank {rank} differs from rank 0: rank 0 has "
                    f"{setting(headers[0])}; rank {rank} has {setting(header)}"
                )
