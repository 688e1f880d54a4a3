"""The networks that several benches train, or take shapes from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normed(into: int, width: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution and its batch normalization."""
    conv = nn.Conv2d(into, width, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class Block(nn.Module):
    """Two 3×3 convolutions and a way past them; where the width grows, the image shrinks."""

    def __init__(self, into: int, width: int) -> None:
        super().__init__()
        stride = 1 if into == width else 2
        self.first, self.second = normed(into, width, 3, stride), normed(width, width, 3)
        self.past = nn.Identity() if into == width else normed(into, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.past(x))


def resnet18(classes: int = 10) -> nn.Sequential:
    """ResNet-18 for small images, as for CIFAR: its stem is 3×3."""
    blocks: list[nn.Module] = []
    into = 64
    for width in (64, 128, 256, 512):
        blocks += [Block(into, width), Block(width, width)]
        into = width
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return nn.Sequential(normed(3, 64, 3), nn.ReLU(), *blocks, *pool)


with torch.device("meta"):
    RESNET18_SHAPES = {name: p.shape for name, p in resnet18().named_parameters()}
RESNET18_SIZES = {name: shape.numel() for name, shape in RESNET18_SHAPES.items()}
RESNET18_NUMEL = sum(RESNET18_SIZES.values())  # 11.2 M


def resnet50() -> nn.Module:
    """A module whose parameters have ResNet-50's names, order and shapes, and random values.

    It has 25.6 M of them, and no forward pass.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, size: int) -> None:
        shapes[f"{name}_conv"] = (out, into, size, size)
        shapes[f"{name}_scale"] = shapes[f"{name}_shift"] = (out,)

    conv("stem", 64, 3, 7)
    into = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            conv(f"{name}_1", width, into, 1)
            conv(f"{name}_2", width, width, 3)
            conv(f"{name}_3", 4 * width, width, 1)
            if block == 0:
                conv(f"{name}_skip", 4 * width, into, 1)
            into = 4 * width
    shapes["head_weight"], shapes["head_bias"] = (1000, 2048), (1000,)
    model = nn.Module()
    for name, shape in shapes.items():
        model.register_parameter(name, nn.Parameter(torch.empty(shape)))
    return model


def mnist_cnn(first: int = 32, second: int = 64, hidden: int = 512) -> nn.Sequential:
    """Federated averaging's network for 28×28 digits, or one of other widths.

    Two convolutions of 5×5, 32 and 64 channels, and 512 hidden units: 1,663,370 parameters.
    """
    return nn.Sequential(
        nn.Conv2d(1, first, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(49 * second, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def count_parameters(model: nn.Module) -> int:
    """How many elements all parameters have."""
    return sum(p.numel() for p in model.parameters())
