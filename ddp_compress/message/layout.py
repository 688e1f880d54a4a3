"""Where every parameter lies in a flat tensor."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ddp_compress.message.conv_kernels import ConvKernel

Scope = Literal["tensor", "bucket", "model"]
SCOPES = ("tensor", "bucket", "model")


@dataclass(frozen=True)
class Layout:
    """The parameters that lie one after another in a flat tensor.

    A DDP bucket is one case, a flat weight difference another.

    Args:
        names: the parameters' names, unique within a model.
        sizes: their element counts.
        kernels: of every parameter; none where no parameter is a convolution's.
        wholes: elements of the whole parameters, where only a slice of each lies here.

    Example:
        >>> Layout(("weight", "bias"), (6, 2)).numel
        8
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    kernels: tuple[ConvKernel, ...] = ()
    wholes: tuple[int, ...] = field(default=(), repr=False)  # messages' digests are of the rest

    @property
    def numel(self) -> int:
        """Elements in all."""
        return sum(self.sizes)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The parts of a flat tensor [N], by parameter."""
        return dict(zip(self.names, flat.split(list(self.sizes)), strict=True))
