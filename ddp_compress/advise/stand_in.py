"""A model in the place of the real one: parameters of its shapes, gradients made up beforehand."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SETS = 2  # of gradients, which take turns


class StandIn(nn.Module):
    """Its gradients are those given to `forward`; backward takes a time in which the host sleeps.

    So does a host's thread while a GPU works: what a hook does then costs nothing.

    Args:
        like: tensors of the parameters' shapes and dtypes.
        backward: seconds; every parameter takes its share of them.
    """

    def __init__(self, like: Sequence[Tensor], backward: float = 0.0) -> None:
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(torch.zeros_like(each)) for each in like])
        self._each = backward / max(1, sum(each.numel() for each in like))

    def forward(self, gradients: Sequence[Tensor]) -> Tensor:
        """A loss with these gradients."""
        pairs = zip(self.values, gradients, strict=True)
        parts = [_Given.apply(value, grad, self._each * grad.numel()) for value, grad in pairs]
        return torch.stack(parts).sum()


class _Given(torch.autograd.Function):
    """0, with a gradient that is given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: Tensor, seconds: float) -> Tensor:
        ctx.gradient, ctx.seconds = gradient, seconds
        return value.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        if ctx.seconds:
            time.sleep(ctx.seconds)
        return ctx.gradient.clone(), None, None  # DDP writes into what it is given


class MadeUp:
    """Gradients as training has them: heavy-tailed, half of them signal that all ranks share.

    Args:
        numel: the most elements that are ever wanted.
        rank: of this process, whose noise is its own.
        device: where they are to lie.
    """

    def __init__(self, numel: int, rank: int, device: torch.device) -> None:
        self._sets = [_heavy_tailed(numel, rank, number).to(device) for number in range(SETS)]

    def like(self, shapes: Sequence[Tensor]) -> list[list[Tensor]]:
        """`SETS` lists of gradients of these shapes and dtypes."""
        return [list(_cut(flat, shapes)) for flat in self._sets]


def _heavy_tailed(numel: int, rank: int, number: int) -> Tensor:
    common = torch.Generator().manual_seed(number)
    own = torch.Generator().manual_seed(1000 * (rank + 1) + number)
    options: Any = {"dtype": torch.float32, "device": torch.device("cpu")}
    flat = torch.randn(numel, generator=common, **options)
    flat += torch.randn(numel, generator=own, **options)
    return flat.mul_(torch.randn(numel, generator=own, **options).mul_(0.7).exp_())


def _cut(flat: Tensor, shapes: Sequence[Tensor]) -> Iterator[Tensor]:
    parts = flat.split([each.numel() for each in shapes] + [_rest(flat, shapes)])
    for number, (part, like) in enumerate(zip(parts[:-1], shapes, strict=True)):
        # Layers' gradients differ in scale.
        yield (part * 10 ** (-3 + number % 3)).to(like.dtype).view(like.shape)


def _rest(flat: Tensor, shapes: Sequence[Tensor]) -> int:
    return flat.numel() - sum(each.numel() for each in shapes)
