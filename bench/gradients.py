"""Made-up gradients, and a model that has them for hardly any work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from networks import RESNET18_SHAPES


class FixedGradients(nn.Module):
    """Parameters whose gradients are the tensors given to `forward`: their dot products' sum.

    Args:
        values: the parameters'.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(value) for value in values])

    def forward(self, gradients: Sequence[Tensor]) -> Tensor:
        pairs = zip(self.values, gradients, strict=True)
        return torch.stack([torch.dot(p.view(-1), g.view(-1)) for p, g in pairs]).sum()


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
