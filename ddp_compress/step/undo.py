"""The way back from a committed step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ddp_compress.message.arena import Arena
from ddp_compress.transport.comm import Comm


class Undo:
    """What a step has changed, until its gradients are applied or the next step begins.

    Args:
        arenas: whose memory it has written.
        comm: what ranks learned in it is forgotten as well.
        known: what they had learned before.
        sent: names of the parameters that it had a gradient for.
    """

    def __init__(
        self,
        arenas: Iterable[Arena],
        comm: Comm,
        known: Mapping[int, tuple[int, dict[str, Any]]],
        sent: list[str],
    ) -> None:
        self._arenas = list(arenas)
        self._comm = comm
        self._known = known
        self.sent = sent

    def take_back(self) -> None:
        """Bring memory back to before the step, bit for bit."""
        for arena in self._arenas:
            arena.undo()
        self._comm.committed = dict(self._known)

    def settle(self) -> None:
        """Let go of what was before: the step stays."""
        for arena in self._arenas:
            arena.settle()
