"""The way back from a committed step."""

from collections.abc import Iterable

from ddp_compress.message.arena import Arena
from ddp_compress.transport.agreed import Agreed


class Undo:
    """What a step has changed, until its gradients are applied or the next step begins.

    Args:
        arenas: whose memory it has written.
        agreed: with the other ranks; what they learn in it is forgotten as well.
        sent: names of the parameters that it had a gradient for.
    """

    def __init__(
        self,
        arenas: Iterable[Arena],
        agreed: Agreed,
        sent: list[str],
    ) -> None:
        self._arenas = list(arenas)
        self._agreed = agreed
        self._committed = dict(agreed.committed)
        self.sent = sent

    def take_back(self) -> None:
        """Bring memory back to before the step, bit for bit."""
        for arena in self._arenas:
            arena.undo()
        self._agreed.committed = dict(self._committed)

    def settle(self) -> None:
        """Let go of what was before: the step stays."""
        for arena in self._arenas:
            arena.settle()
