"""Take a committed step back, bit for bit."""

from collections.abc import Sequence

import torch

from ddp_compress.message.arena import Arena
from ddp_compress.message.chunk import Chunk
from ddp_compress.ops.devices import side_stream
from ddp_compress.transport.agreed import Agreed


class Undo:
    """What a step has changed, until its gradients are applied or the next step begins.

    Args:
        chunks: the step's, before their memory and gradients are written.
        agreed: with the other ranks; what they learn in the step is forgotten as well.

    Attributes:
        sent: names of the parameters that the step had a gradient for.
    """

    def __init__(self, chunks: Sequence[Chunk], agreed: Agreed) -> None:
        self.sent: list[str] = []
        self._arenas: list[tuple[torch.device, Arena]] = []
        self._agreed = agreed
        self._committed = dict(agreed.committed)
        for chunk in chunks:
            self.sent += chunk.used
            self._arenas.append((chunk.grad.device, chunk.kept))

    def take_back(self) -> None:
        """Bring memory back to before the step, bit for bit."""
        for device, arena in self._arenas:
            with side_stream(device).in_between():  # memory was written there, perhaps just now
                arena.undo()
        # Not the agreed density: whether to go back is perhaps this rank's doing alone.
        self._agreed.committed = self._committed

    def settle(self) -> None:
        """Let go of what was before: the step stays."""
        for _, arena in self._arenas:
            arena.settle()
