"""Guess values by the running average of those that came before."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddp_compress.checks import check_number
from ddp_compress.recipe import Tensors


@dataclass(frozen=True)
class RunningAverage:
    """Guess the mean gradient of every parameter: ``a = beta a + (1 - beta) mean``.

    One number a parameter on every rank, 4 bytes. The second moment by which the paper divides the
    average is left out: it cannot change a sign.

    Args:
        beta: what the average keeps of itself in a step, in [0, 1).

    Raises:
        TypeError: beta is no number.
        ValueError: beta lies outside its range.

    Source: Hu et al., Practical Hybrid Gradient Compression for Federated Learning Systems (IJCAI
    2024), §3.1, eq. 3 and 4.

    Example:
        >>> import torch
        >>> RunningAverage(0.75).next(torch.tensor([4.0]), torch.tensor([8.0]))
        tensor([5.])
    """

    beta: float

    tensors: ClassVar[Tensors] = {"average": None}

    def __post_init__(self) -> None:
        if not 0.0 <= check_number("predictor", self.beta, "a number or None") < 1.0:
            raise ValueError(f"predictor must lie in [0, 1) or be None, got {self.beta!r}")

    def next(self, average: Tensor, mean: Tensor) -> Tensor:
        """The average [K], moved towards a new mean [K]."""
        return self.beta * average + (1.0 - self.beta) * mean
