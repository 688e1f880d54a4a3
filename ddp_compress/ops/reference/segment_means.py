"""Twin of csrc/cpu/segment_means.cpp."""

import math

import torch
from torch import Tensor

from ddp_compress.ops import host


def exact_mean(values: Tensor) -> float:
    """Mean of [K] values through an exact integer sum, the same in any order of summation.

    Values are scaled by a power of two to 31-bit integers, summed in int64 and scaled back, so
    that any hardware that sums in any order finds the same bits. An empty tensor has mean 0, and
    one that holds an infinity or a NaN has mean NaN.

    Example:
        >>> exact_mean(torch.tensor([1.0, 2.0, 4.5]))
        2.5
    """
    if not len(values):
        return 0.0
    wide = values.double()
    largest = float(wide.abs().max())
    if not math.isfinite(largest):
        return math.nan
    _, exponent = math.frexp(largest)
    shift = 31 - max(exponent, -900)  # keeps 2**shift a finite double
    total = int((wide * 2.0**shift).round().long().sum())
    return math.ldexp(float(total) / len(values), -shift)


def segment_means(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of every segment of a tensor.

    Args:
        values: [K], fp32 or fp64, the segments one after another.
        counts: [S], int64, elements of each segment; they sum to K.

    Returns:
        [S], fp32: the means, 0 for an empty segment and NaN for one that is not finite.

    Raises:
        RuntimeError: the counts do not sum to K.

    Example:
        >>> segment_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2, 0, 1]))
        tensor([2., 0., 5.])
    """
    sizes = counts.tolist()
    if sum(sizes) != len(values) or min(sizes, default=0) < 0:
        raise RuntimeError(f"counts sum to {sum(sizes)}, expected {len(values)}")
    return host.tensor([exact_mean(part) for part in values.split(sizes)], dtype=torch.float32)
