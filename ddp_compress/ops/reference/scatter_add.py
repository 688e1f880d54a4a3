"""Twin of csrc/cpu/scatter_add.cpp."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.ops import host


def scatter_add(
    out: Tensor,
    start: int,
    indices: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
    afresh: bool = False,
) -> None:
    """Add the sparse entries of W ranks to a piece of the message, in rank order.

    ``out[indices[r] - start] += scale * values[r]`` for r = 0 … W-1, entries outside
    ``[start, start + N)`` passed over. bf16 and fp16 are summed in fp32 and rounded once, so the
    result depends on the entries alone.

    Args:
        out: [N], fp32, bf16, fp16 or fp64; changed in place.
        start: position of ``out[0]`` in the message.
        indices: W tensors [K_r], int32, strictly ascending positions in the message.
        values: W tensors [K_r], fp32 (fp64 for fp64 ``out``).
        scale: factor of every value, 1/W for a mean.
        afresh: whether ``out`` counts as zero before, whatever it holds.

    Raises:
        RuntimeError: shapes or dtypes do not fit, or positions do not ascend.

    Example:
        >>> out = torch.zeros(4)
        >>> scatter_add(out, 10, [torch.tensor([11, 20], dtype=torch.int32)],
        ...             [torch.tensor([3.0, 9.0])], 0.5)
        >>> out
        tensor([0.0000, 1.5000, 0.0000, 0.0000])
    """
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    total = torch.zeros_like(out, dtype=wide) if afresh else out.to(wide)
    for positions, entries in zip(indices, values, strict=True):
        if (positions[1:] <= positions[:-1]).any() or (positions[:1] < 0).any():
            raise RuntimeError("indices must ascend strictly from 0 or more")
        here = (positions >= start) & (positions < start + out.numel())
        total[positions[here].long() - start] += entries[here] * host.tensor(scale, dtype=wide)
    out.copy_(total)
