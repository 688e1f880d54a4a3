"""Send a sign for every value, and a mean magnitude for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_int
from ddp_compress.message.context import Context
from ddp_compress.message.runs import Run
from ddp_compress.quantize.symbols import check_size, read_means


@dataclass(frozen=True)
class Signs:
    """A bit for the sign of a value, and a mean magnitude that many values share.

    With one magnitude a group, and positions beside it, this is sparse ternary compression.

    Args:
        block: how many values of a group share a magnitude, a multiple of 8; None for all.

    Raises:
        TypeError: the block is no int.
        ValueError: the block is no positive multiple of 8.

    Source: Sattler et al., Robust and Communication-Efficient Federated Learning from Non-IID Data
    (2019), Alg. 1; with blocks: Zheng et al., Communication-Efficient Distributed Blockwise
    Momentum SGD with Error-Feedback (NeurIPS 2019).

    Example:
        >>> from ddp_compress.message.context import Context
        >>> context = Context(counts=torch.tensor([2, 1]))
        >>> wire = Signs().encode(torch.tensor([1.0, -2.0, -8.0]), context)
        >>> Signs().decode(wire, context)
        tensor([ 1.5000, -1.5000, -8.0000])
    """

    block: int | None = None

    sum_dtype: ClassVar[torch.dtype] = torch.float32

    def __post_init__(self) -> None:
        if self.block is None:
            return
        check_int("block", self.block, "an int or None")
        if self.block <= 0 or self.block % 8:
            raise ValueError(f"block must be a positive multiple of 8 or None, got {self.block!r}")

    def size(self, counts: Tensor) -> int:
        """Bytes of all scales and bits."""
        return sum(self._bytes(counts))

    def encode(self, values: Tensor, context: Context) -> Tensor:
        """The scales, fp32, then the sign bits (see `reference.sign_encode`)."""
        counts = context.counts
        bits, scales = ops.sign_encode(values, _bounds(counts), self._block(counts))
        return torch.cat([scales.view(torch.uint8), bits])

    def decode(self, data: Tensor, context: Context) -> Tensor:
        """The mean magnitude of its block for every value, with its sign: fp32 [K]."""
        counts = context.counts
        in_scales, in_bits = self._bytes(counts)
        check_size("signs", data, in_scales + in_bits)
        scales = read_means("signs", data, in_scales // 4)
        return ops.sign_decode(data[in_scales:], scales, _bounds(counts), self._block(counts))

    def encode_runs(
        self, values: Sequence[Tensor], runs: Sequence[Run], context: Context
    ) -> Tensor | None:
        """See `recipe.QuantizeRuns`."""
        block = self._block(context.counts)
        parts = [
            ops.sign_encode(each, run.bounds, block) for each, run in zip(values, runs, strict=True)
        ]
        scales = torch.cat([scale for _, scale in parts])
        if not scales.isfinite().all():
            return None
        return torch.cat([scales.view(torch.uint8), *[bits for bits, _ in parts]])

    def read_runs(
        self, data: Tensor, runs: Sequence[Run], context: Context, limit: Tensor | float | None
    ) -> list[SignRun]:
        """See `recipe.QuantizeRuns`."""
        counts = context.counts
        in_scales, in_bits = self._bytes(counts)
        check_size("signs", data, in_scales + in_bits)
        scales, bits = read_means("signs", data, in_scales // 4), data[in_scales:]
        if limit is not None:
            scales = scales.clamp(-limit, limit)  # type: ignore[arg-type] # a tensor may be one
        block = self._block(counts)
        sizes = [run.bounds.diff() for run in runs]
        parts = zip(
            bits.split([int(_ceil(each, 8).sum()) for each in sizes]),
            scales.split([int(_ceil(each, block).sum()) for each in sizes]),
            runs,
            strict=True,
        )
        return [SignRun(signs, means, run.bounds, block) for signs, means, run in parts]

    def _block(self, counts: Tensor) -> int:
        return self.block or 8 * max([1, *_ceil(counts, 8).tolist()])

    def _bytes(self, counts: Tensor) -> tuple[int, int]:
        scales = _ceil(counts, self._block(counts))
        return 4 * int(scales.sum()), int(_ceil(counts, 8).sum())


@dataclass(frozen=True)
class SignRun:
    """Signs and magnitudes of a run; see `ops.reference.sign_add`."""

    bits: Tensor
    scales: Tensor
    bounds: Tensor
    block: int

    def add_to(self, out: Tensor, all_ranks: Sequence[SignRun], scale: float, afresh: bool) -> None:
        """See `message.encoded.Encoded`."""
        bits, scales = [each.bits for each in all_ranks], [each.scales for each in all_ranks]
        ops.sign_add(out, bits, scales, self.bounds, self.block, scale, afresh)


def _ceil(counts: Tensor, divisor: int) -> Tensor:
    return (counts + divisor - 1) // divisor


def _bounds(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
