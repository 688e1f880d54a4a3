"""Take a committed step back, bit for bit."""

from collections.abc import Iterable, Sequence

from ddp_compress.message.chunk import Chunk
from ddp_compress.ops.devices import side_stream
from ddp_compress.transport.agreed import Agreed


class Undo:
    """What a step has changed, until its gradients are applied or the next step begins.

    Args:
        chunks: the step's, before their gradients are written.
        parts: of them this rank's, before their memory is written.
        agreed: with the other ranks; what they learn in the step is forgotten as well.

    Attributes:
        sent: names of the parameters that the step had a gradient for.
    """

    def __init__(self, chunks: Sequence[Chunk], parts: Iterable[Chunk], agreed: Agreed) -> None:
        self.sent = [name for chunk in chunks for name in chunk.used]
        self._arenas = [(part.grad.device, part.kept) for part in parts]
        self._agreed = agreed
        self._committed = dict(agreed.committed)

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
