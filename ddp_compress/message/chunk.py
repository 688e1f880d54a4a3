"""One flat gradient on its way, and the memory that belongs to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ddp_compress.message.arena import Arena
from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import Layout
from ddp_compress.message.presence import Presence
from ddp_compress.ops.devices import to_host


@dataclass
class Chunk:
    """One flat gradient [N] with its layout and the memory that belongs to it.

    Args:
        grad: [N].
        layout: its parameters.
        kept: memory, by name: written when the step commits.
        may_be_unused: whether a parameter may have been left out of this rank's step.
        sums: [N], the accumulated gradient, where selecting has left it: in memory's next tensors.
        scale: [], what the gradient was multiplied by; None for 1.
        must_match: anything whose repr ranks must share.
        presence: which parameters have a gradient, where that is known; else it is told by zeros.

    Attributes:
        future: completed with the averaged gradient when the step commits.
        writes: entries to write into memory then, by name, where an exchange has left them.
    """

    grad: Tensor
    layout: Layout
    kept: Arena = field(default_factory=Arena)
    may_be_unused: bool = False
    sums: Tensor | None = None
    scale: Tensor | None = None
    must_match: object = None
    presence: Presence | None = None

    def __post_init__(self) -> None:
        self.writes: list[tuple[str, Entries]] = []
        devices: list[int | str | torch.device] = [self.grad.device] if self.grad.is_cuda else []
        self.future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)

    @cached_property
    def unused(self) -> list[bool]:
        """Which parameters send nothing in this step: they have no gradient, or one of zeros.

        The result for a parameter that no rank used is thrown away, with ``find_unused_parameters``
        by DDP. Whoever has no gradient for it must send nothing, or that would be lost.
        """
        if self.presence is not None:
            return [name not in self.presence.here for name in self.layout.names]
        if not self.may_be_unused:
            return [False] * len(self.layout.sizes)
        parts = self.grad.split(list(self.layout.sizes))
        used: list[bool] = to_host(torch.stack([part.any() for part in parts])).tolist()
        return [not each for each in used]

    @property
    def used(self) -> Sequence[str]:
        """The names of the others."""
        if not self.may_be_unused and self.presence is None:
            return self.layout.names
        return [n for n, unused in zip(self.layout.names, self.unused, strict=True) if not unused]


def memory_dtype(grad: torch.dtype) -> torch.dtype:
    """The dtype that memory of such gradients is kept in.

    Raises:
        ValueError: such gradients cannot be compressed.

    Example:
        >>> memory_dtype(torch.bfloat16)
        torch.float32
    """
    if grad not in _MEMORY_DTYPES:
        expected = ", ".join(map(str, _MEMORY_DTYPES))
        raise ValueError(f"gradient has dtype {grad}, expected one of {expected}")
    return _MEMORY_DTYPES[grad]


_MEMORY_DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
