"""What is trained: parameters' shapes and dtypes, and how long a step takes without an exchange."""

from __future__ import annotations

import statistics
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from ddp_compress.advise.ranks import Ranks

WIDTH = 1024  # of the matrices of a model of which only the size is known
WINDOWS = 16  # of the model that a sample is made of
BACKWARD = 2 / 3  # of a step
MEASURED = 5  # steps, after the first


@dataclass(frozen=True)
class Workload:
    """A model to train.

    Args:
        parameters: tensors of its parameters' shapes and dtypes, without memory (of device "meta").
        step: seconds of forward and backward without an exchange.
    """

    parameters: Sequence[Tensor]
    step: float = 0.0

    @property
    def numel(self) -> int:
        """Elements of all parameters."""
        return sum(each.numel() for each in self.parameters)

    @property
    def backward(self) -> float:
        """Seconds of a step in which gradients come, and can travel."""
        return BACKWARD * self.step

    def describe(self) -> str:
        """What ranks must share."""
        shapes = [(str(each.dtype), tuple(each.shape)) for each in self.parameters]
        return (
            f"{len(self.parameters)} parameters of {self.numel} elements "
            f"(shapes: {zlib.crc32(repr(shapes).encode())}), {self.step} s a step"
        )

    def sample(self, most: int) -> list[Tensor]:
        """Parameters of about ``most`` elements together: neighbours from all over the model."""
        if most >= self.numel:
            return list(self.parameters)
        ends = list(accumulate(each.numel() for each in self.parameters))
        chosen: list[Tensor] = []
        for window in range(WINDOWS):
            index, left = bisect_right(ends, window * self.numel // WINDOWS), most // WINDOWS
            while left > 0 and index < len(ends):
                chosen.append(_rows(self.parameters[index], left))
                index, left = index + 1, left - chosen[-1].numel()
        return chosen or [_rows(self.parameters[0], most)]


def of_size(numel: int) -> list[Tensor]:
    """Matrices of 1024 × 1024, each with a vector, as linear layers have them.

    Example:
        >>> [tuple(each.shape) for each in of_size(2**20 + 5000)]
        [(1024, 1024), (1024,), (3, 1024), (904,)]
    """
    return list(_layers(numel))


def _layers(left: int) -> Iterator[Tensor]:
    while left > 0:
        rows = min(WIDTH, left // WIDTH)
        for shape in [(rows, WIDTH)] * bool(rows) + [(min(WIDTH, left - rows * WIDTH),)]:
            if shape[0]:
                yield torch.empty(shape, dtype=torch.float32, device="meta")
        left -= rows * WIDTH + WIDTH


def of_model(model: nn.Module) -> list[Tensor]:
    """The parameters that a model trains.

    Raises:
        ValueError: there are none.
    """
    trained = [p for p in model.parameters() if p.requires_grad and p.numel()]
    if not trained:
        raise ValueError("the model has no parameter that is trained: expected an nn.Module")
    if any(p.is_meta for p in trained):
        raise ValueError("the model has no memory (device meta): give its number of parameters")
    return [torch.empty(p.shape, dtype=p.dtype, device="meta") for p in trained]


def _rows(tensor: Tensor, most: int) -> Tensor:
    """The first rows of a tensor, or a part of the first, of so many elements at most."""
    if tensor.dim() == 0 or tensor.numel() <= most:
        return tensor
    each = tensor.numel() // len(tensor)
    return tensor[: most // each] if each <= most else _rows(tensor[0], most)


def measure_step(model: nn.Module, inputs: Sequence[object], ranks: Ranks) -> float:
    """Seconds of forward and backward, all ranks at once, nothing exchanged; of the slowest.

    Gradients and buffers of the model stay as they are.

    Raises:
        PeerError: on every rank, where the model failed on one.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    kept = [buffer.detach().clone() for buffer in model.buffers()]

    def step() -> None:
        torch.autograd.grad(_total(model(*inputs)), trained, allow_unused=True)

    def first() -> str:
        step()
        ranks.wait()
        return "a step"

    try:
        ranks.agree(first)
        times = [ranks.seconds(step) for _ in range(MEASURED)]
    finally:
        for buffer, before in zip(model.buffers(), kept, strict=True):
            buffer.data.copy_(before)
    return statistics.median(ranks.slowest_of(times))


def _total(output: object) -> Tensor:
    """A loss: the sum of whatever a model returns.

    Raises:
        TypeError: there is no tensor in it.
    """
    if isinstance(output, dict):
        output = list(output.values())
    parts = list(output) if isinstance(output, list | tuple) else [output]
    losses = [p.float().sum() for p in parts if isinstance(p, Tensor) and p.requires_grad]
    if not losses:
        raise TypeError(
            f"the model returned {type(output).__name__}, in which nothing can be differentiated: "
            "expected a tensor, or a list or dict of tensors"
        )
    return torch.stack(losses).sum()
