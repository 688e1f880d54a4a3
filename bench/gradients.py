"""Made-up gradients, and a model that has them for hardly any work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from networks import RESNET18_SHAPES


class FixedGradients(nn.Module):
    """Parameters whose gradients are the tensors given to `forward`: their dot products' sum.

    Args:
        values: the parameters'.
        backward: seconds of a backward pass, spent asleep, as the host's thread is while a GPU
            works; every matrix and convolution takes as long.
    """

    def __init__(self, values: Sequence[Tensor], backward: float = 0.0) -> None:
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(value) for value in values])
        self._each = backward / max(1, sum(value.dim() > 1 for value in values))

    def forward(self, gradients: Sequence[Tensor]) -> Tensor:
        pairs = zip(self.values, gradients, strict=True)
        return torch.stack([torch.dot(self._late(p).view(-1), g.view(-1)) for p, g in pairs]).sum()

    def _late(self, value: Tensor) -> Tensor:
        """The same, whose gradient comes late."""
        late: Tensor = Late.apply(value, self._each) if self._each and value.dim() > 1 else value
        return late


class Late(torch.autograd.Function):
    """Nothing, but for the time that it takes backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return grads[0], None


def heavy_tailed(rank: int, number: int) -> list[Tensor]:
    """Gradients of ResNet-18's shapes: of each a scale and a signal that ranks share, and noise."""
    common = torch.Generator().manual_seed(number)
    own = torch.Generator().manual_seed(1000 * (rank + 1) + number)

    def gradient(shape: torch.Size) -> Tensor:
        scale = 10 ** (-3 + 2 * torch.rand((), generator=common))
        signal = torch.randn(shape, generator=common)
        noise = torch.randn(shape, generator=own)
        tail = torch.randn(shape, generator=own).mul_(0.7).exp_()
        return signal.add_(noise).mul_(tail).mul_(scale)

    return [gradient(shape) for shape in RESNET18_SHAPES.values()]


def of_uneven_scale(model: nn.Module) -> dict[str, Tensor]:
    """Random gradients of a model, by name: the larger a tensor, the smaller its entries."""
    parameters = model.named_parameters()
    return {name: torch.randn(p.shape) * p.numel() ** -0.25 for name, p in parameters}
