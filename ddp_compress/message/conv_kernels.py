"""Where the kernels of convolutions lie: whole ones count as one place."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddp_compress.ops import host

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class ConvKernel(NamedTuple):
    """The kernels of one parameter: their elements, and how far apart these lie in memory."""

    numel: int = 1
    stride: int = 1

    @property
    def block(self) -> int:
        """Neighbours in memory that hold whole kernels: one, or where they interlock several."""
        return self.numel * self.stride


def kernel_of(weight: Tensor) -> ConvKernel:
    """The kernels of a convolution's weight, whatever its memory format.

    A kernel is the trailing spatial block, all of one pair of channels. In a contiguous weight its
    elements are neighbours, in a channels_last one they lie as far apart as there are channels.
    Where they lie in no such order, every element is a kernel by itself.

    Args:
        weight: [out, in / groups, ...], or with the first two exchanged.

    Example:
        >>> weight = torch.empty(8, 4, 3, 3)
        >>> kernel_of(weight), kernel_of(weight.to(memory_format=torch.channels_last))
        (ConvKernel(numel=9, stride=1), ConvKernel(numel=9, stride=4))
    """
    numel = prod(weight.shape[2:])
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if numel <= 1:
        return ConvKernel()
    if weight.is_contiguous():
        return ConvKernel(numel)
    last = formats.get(weight.dim())
    if last is not None and weight.is_contiguous(memory_format=last):
        return ConvKernel(numel, weight.shape[1])
    return ConvKernel()


def convolutions(model: nn.Module) -> frozenset[int]:
    """The ids of all weights of a model's convolutions, transposed ones included.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2))
        >>> convolutions(model) == {id(model[0].weight)}
        True
    """
    return frozenset(id(each.weight) for each in model.modules() if isinstance(each, CONVOLUTIONS))


@dataclass(frozen=True)
class ConvKernels:
    """The kernels of a message's P parameters, one parameter after another.

    Args:
        bounds: offsets of the parameters, [P + 1] int64.
        kernels: of every parameter; parameters that are no convolution's have kernels of 1.

    Example:
        >>> kernels = ConvKernels(torch.tensor([0, 8, 10]), [ConvKernel(4, 2), ConvKernel()])
        >>> kernels.starts
        tensor([0, 2, 2])
    """

    bounds: Tensor
    kernels: Sequence[ConvKernel]

    @cached_property
    def numels(self) -> Tensor:
        """Elements of a kernel, [P] int64."""
        return host.tensor([kernel.numel for kernel in self.kernels], dtype=torch.int64)

    @cached_property
    def strides(self) -> Tensor:
        """How far apart these lie, [P] int64."""
        return host.tensor([kernel.stride for kernel in self.kernels], dtype=torch.int64)

    @cached_property
    def sizes(self) -> list[int]:
        """The sizes of kernels that occur, without 1, ascending."""
        return sorted({kernel.numel for kernel in self.kernels} - {1})

    @cached_property
    def counts(self) -> Tensor:
        """Kernels of every parameter, [P] int64; 0 where they are single elements."""
        return torch.where(self.numels > 1, self.bounds.diff() // self.numels, 0)

    @cached_property
    def starts(self) -> Tensor:
        """Offsets of the parameters among all kernels, [P + 1] int64."""
        return torch.nn.functional.pad(self.counts.cumsum(0), (1, 0))

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """As the ops take them: bounds, and of the kernels sizes and strides."""
        return self.bounds, self.numels, self.strides
