"""Local gradient clipping: one rank's outlier does not stay in its memory for long."""

import torch

from ddp_compress.checks import check_number
from ddp_compress.message.chunk import Chunk


def clip_gradient(chunk: Chunk, limit: float) -> None:
    """Scale every parameter's gradient g to a norm of ``limit`` at most: ``g min(1, limit / |g|)``.

    The norm is one parameter's, as in the code of DGC's authors: messages go out while backward
    still runs, so no norm of the whole gradient is known, and one of a bucket or message would
    change with their sizes. What is clipped is lost, on purpose: it is not in memory either.

    Args:
        chunk: its gradient [N] is changed in place, its memory is not. Inf and NaN stay non-finite.
        limit: the most of the norm, above 0.

    Source: Lin et al., Deep Gradient Compression (ICLR 2018), §3.2.
    """
    for grad in chunk.grad.split(list(chunk.layout.sizes)):
        # fp64, so that no finite fp32 gradient has an infinite norm.
        norm = torch.linalg.vector_norm(grad, dtype=torch.float64)
        grad.mul_((limit / norm).clamp(max=1.0))


def check_clip(clip: object) -> None:
    """Raise an error unless it is None, or a finite number above 0.

    Example:
        >>> check_clip(0.0)
        Traceback (most recent call last):
        ...
        ValueError: clip must be a finite number above 0 or None, got 0.0
    """
    expected = "a finite number above 0 or None"
    if clip is not None and not 0.0 < check_number("clip", clip, expected) < float("inf"):
        raise ValueError(f"clip must be {expected}, got {clip}")
