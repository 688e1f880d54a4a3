"""A model in the place of the real one: parameters of its shapes, gradients made up beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SETS = 2  # of gradients, which take turns
CALIBRATED = 0.05  # seconds


Spend = Callable[[float], None]


class Busy:
    """Computes for as many seconds as it is told, as a backward pass does.

    It is so much work as took as long when all ranks computed: what runs beside it on the same
    cores makes it slower. On a GPU work is launched, and the host goes on.

    Args:
        device: that computes.

    Example:
        >>> Busy(torch.device("cpu"))(0.01)
    """

    def __init__(self, device: torch.device) -> None:
        size = 64 if device.type == "cpu" else 1024
        self._matrix = torch.ones(size, size, dtype=torch.float32, device=device)
        self._launch(1)
        count, passed = 1, 0.0
        while passed < CALIBRATED:
            count *= 2
            begin = time.perf_counter()
            self._launch(count)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            passed = time.perf_counter() - begin
        self._each = passed / count

    def __call__(self, seconds: float) -> None:
        """Compute."""
        self._launch(round(seconds / self._each))

    def _launch(self, count: int) -> None:
        for _ in range(count):
            torch.mm(self._matrix, self._matrix)


class StandIn(nn.Module):
    """Its gradients are those given to `forward`; its backward pass takes a time.

    Args:
        like: tensors of the parameters' shapes and dtypes.
        backward: seconds; every parameter takes its share of them.
        spend: lets seconds pass.
    """

    def __init__(self, like: Sequence[Tensor], backward: float, spend: Spend) -> None:
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(torch.zeros_like(each)) for each in like])
        self._each = backward / max(1, sum(each.numel() for each in like))
        self._spend = spend

    def forward(self, gradients: Sequence[Tensor]) -> Tensor:
        """A loss with these gradients."""
        pairs = zip(self.values, gradients, strict=True)
        parts = [
            _Given.apply(value, grad, self._each * grad.numel(), self._spend)
            for value, grad in pairs
        ]
        return torch.stack(parts).sum()


class _Given(torch.autograd.Function):
    """0, with a gradient that is given, after a while."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: Tensor, seconds: float, spend: Spend) -> Tensor:
        ctx.gradient, ctx.seconds, ctx.spend = gradient, seconds, spend
        return value.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.spend(ctx.seconds)
        return ctx.gradient.clone(), None, None, None  # DDP writes into what it is given


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

    def normal(generator: torch.Generator) -> Tensor:
        flat = torch.empty(numel, dtype=torch.float32, device=torch.device("cpu"))
        return flat.normal_(generator=generator)

    flat = normal(common).add_(normal(own))
    return flat.mul_(normal(own).mul_(0.7).exp_())


def _cut(flat: Tensor, shapes: Sequence[Tensor]) -> Iterator[Tensor]:
    parts = flat.split([each.numel() for each in shapes] + [_rest(flat, shapes)])
    for number, (part, like) in enumerate(zip(parts[:-1], shapes, strict=True)):
        # Layers' gradients differ in scale.
        yield (part * 10 ** (-3 + number % 3)).to(like.dtype).view(like.shape)


def _rest(flat: Tensor, shapes: Sequence[Tensor]) -> int:
    return flat.numel() - sum(each.numel() for each in shapes)
