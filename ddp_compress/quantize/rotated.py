"""Rotate values, send some coefficients, rounded at random: right on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_count, check_int, check_one_of, check_within
from ddp_compress.message.context import Context
from ddp_compress.message.plan import entry_count
from ddp_compress.message.random_key import RandomKey
from ddp_compress.message.runs import Run
from ddp_compress.ops import host
from ddp_compress.ops.finite import all_finite
from ddp_compress.ops.reference import random_words
from ddp_compress.ops.reference.rotated import LARGEST, SIZES, SMALLEST, block_sizes
from ddp_compress.quantize.symbols import check_size, read_means
from ddp_compress.schedules import check_density

Transform = Literal["hadamard", "kashin", "none"]
FARTHEST = 4e34  # of a level: 8192 of them have a finite sum
NO_PLACES = NO_SALTS = host.empty(0, dtype=torch.int64)
NO_MASKS = host.empty(0, dtype=torch.bool)


@dataclass(frozen=True)
class Rotated:
    """Turn blocks of values, send some of the coefficients, rounded to 2^bits levels at random.

    Every group is cut into blocks of 8192, 4096, ... 32 coefficients, the largest first; fewer
    values than the smallest block are exact, in fp32. In every block:

    1. **Transform.** ``"hadamard"``: random signs, then the Walsh-Hadamard transform, which spreads
       large values over the block. ``"kashin"``: Kashin's representation in 32 coefficients for
       every 31 values; what is above the root mean square is cut off, turned back, and what that
       left out is represented anew, so that no coefficient is far larger than the others.
    2. **Subsample.** A share ``keep`` of the coefficients, drawn from a seed that all ranks share:
       no positions travel, and the mask is the same on all ranks.
    3. **Quantize.** To levels between the smallest and the largest, at random (see
       `reference.rotated_encode`); no two ranks draw alike.

    Values beyond 1e26 are cut off there.

    Args:
        bits: of a coefficient, 1 to 8.
        transform: see above.
        keep: share of the coefficients to send, in (0, 1].
        unbiased: whether the coefficients sent also stand for the others, so that on average
            values stay. With error feedback they must not: what is not sent is sent later.
        iterations: of Kashin's representation.
        seed: of all that is drawn, the same on every rank.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Caldas et al., Expanding the Reach of Federated Learning by Reducing Client Resource
    Requirements (2018), §3.1 and App. A.

    Example:
        >>> from ddp_compress.message.context import Context
        >>> from ddp_compress.message.random_key import RandomKey
        >>> context = Context(torch.tensor([3]), RandomKey(("weight",), step=0, rank=0))
        >>> rotated = Rotated(bits=4)
        >>> data = rotated.encode(torch.tensor([1.0, -2.0, 8.0]), context)
        >>> rotated.decode(data, context)
        tensor([ 1., -2.,  8.])
    """

    bits: int
    transform: Transform = "hadamard"
    keep: float = 1.0
    unbiased: bool = True
    iterations: int = 2
    seed: int = 0

    sum_dtype: ClassVar[torch.dtype] = torch.float32

    def __post_init__(self) -> None:
        check_within("bits", self.bits, 1, 8)
        check_one_of("transform", self.transform, ("hadamard", "kashin", "none"))
        check_density(self.keep, "keep")
        check_count("iterations", self.iterations, least=1)
        check_int("seed", self.seed)

    def size(self, counts: Tensor) -> int:
        """Bytes of all exact values, levels and codes."""
        return self._sizes(counts).all

    def encode(self, values: Tensor, context: Context) -> Tensor:
        """The exact values and the blocks' levels, fp32, then their codes."""
        signs, free, sent = self._shared(context.key)
        noises = context.key.per_rank(self.seed)
        tables = context.counts, signs, noises, free, sent
        iterations = self.iterations if self.transform == "kashin" else 1
        return ops.rotated_encode(values.float(), *tables, self.unbiased, iterations, self.bits)

    def decode(self, data: Tensor, context: Context) -> Tensor:
        """The values again, with noise: fp32 [K]."""
        self._check(data, context)
        return ops.rotated_decode(data, context.counts, *self._shared(context.key), self.bits)

    def encode_runs(
        self, values: Sequence[Tensor], runs: Sequence[Run], context: Context
    ) -> Tensor | None:
        """See `recipe.QuantizeRuns`."""
        flat = values[0] if len(values) == 1 else torch.cat(list(values))
        return self.encode(flat, context) if all_finite(flat) else None

    def read_runs(
        self, data: Tensor, runs: Sequence[Run], context: Context, limit: Tensor | float | None
    ) -> list[RotatedRun]:
        """See `recipe.QuantizeRuns`."""
        self._check(data, context)
        tables = context.counts, *self._shared(context.key), self.bits
        most, first, read = torch.inf if limit is None else float(limit), 0, []
        for run in runs:
            read.append(RotatedRun(first, data, tables, most))
            first += run.end - run.start
        return read

    def _check(self, data: Tensor, context: Context) -> None:
        """Raise a ValueError unless the data fit the context, and no level is too far."""
        sizes = self._sizes(context.counts)
        check_size("rotated", data, sizes.all)
        levels = read_means("rotated", data, sizes.numbers)[sizes.left_over :]
        lowest, step = levels.view(-1, 2).unbind(1)
        highest = lowest + (2**self.bits - 1) * step
        if not (torch.maximum(lowest.abs(), highest.abs()) <= FARTHEST).all():
            raise ValueError(f"rotated: a level is farther from 0 than {FARTHEST:g}")

    def _sizes(self, counts: Tensor) -> Sizes:
        hold = SMALLEST - 1 if self.transform == "kashin" else SMALLEST
        return sizes_of(tuple(counts.tolist()), hold, self.keep, self.bits)

    def _shared(self, key: RandomKey) -> tuple[Tensor, Tensor, Tensor]:
        """What all ranks draw alike: signs, free coefficients, and those that are sent."""
        signs = NO_SALTS if self.transform == "none" else key.common(self.seed)
        salt = key.single(self.seed)
        free = free_places(salt) if self.transform == "kashin" else NO_PLACES
        sent = sent_masks(int(salt), self.keep) if self.keep < 1 else NO_MASKS
        return signs, free, sent


@dataclass(frozen=True)
class RotatedRun:
    """What a message holds of a run; see `ops.reference.rotated_add`.

    Args:
        first: which of the message's values the run begins with.
        data: the message.
        tables: what both sides know of it.
        limit: the most of a value's magnitude.
    """

    first: int
    data: Tensor
    tables: tuple[Tensor, Tensor, Tensor, Tensor, int]
    limit: float

    def add_to(
        self, out: Tensor, all_ranks: Sequence[RotatedRun], scale: float, afresh: bool
    ) -> None:
        """See `message.encoded.Encoded`."""
        data = [each.data for each in all_ranks]
        ops.rotated_add(out, self.first, data, *self.tables, self.limit, scale, afresh)


@dataclass(frozen=True)
class Sizes:
    """What a message holds.

    Args:
        left_over: values that fill no block.
        numbers: fp32 numbers: these, and the levels of all blocks.
        all: bytes, of codes too.
    """

    left_over: int
    numbers: int
    all: int


@lru_cache(maxsize=256)  # most steps repeat it
def sizes_of(counts: tuple[int, ...], hold: int, keep: float, bits: int) -> Sizes:
    """The sizes of a message of so many values in every group.

    Example:
        >>> sizes_of((100, 5), hold=32, keep=0.5, bits=4)
        Sizes(left_over=9, numbers=13, all=76)
    """
    blocks = [size for count in counts for size in block_sizes(count, hold)]
    left_over = sum(count % hold for count in counts)
    numbers = left_over + 2 * len(blocks)
    codes = sum((bits * entry_count(keep, size) + 7) // 8 for size in blocks)
    return Sizes(left_over, numbers, 4 * numbers + codes)


def free_places(salt: Tensor) -> Tensor:
    """Which of every 32 coefficients of Kashin's representation holds no value, [256] int64.

    They are drawn, because the free ones must not lie in line with the rows of a Hadamard matrix:
    half of them, say, would only repeat the other half.

    Example:
        >>> free_places(torch.tensor([7]))[:4]
        tensor([20, 12, 24, 22])
    """
    return random_words(host.arange(0, LARGEST, SMALLEST), salt) % SMALLEST


@lru_cache(maxsize=4)  # all of a step's messages share it
def sent_masks(salt: int, keep: float) -> Tensor:
    """Which coefficients are sent, [16352] bool: in blocks of one size the same.

    Example:
        >>> [int(mask.sum()) for mask in sent_masks(7, keep=0.5).split([32, 64, 16256])]
        [16, 32, 8128]
    """
    words = random_words(host.arange(LARGEST), host.tensor([salt], dtype=torch.int64))
    ends = [words[:size].kthvalue(entry_count(keep, size)).values for size in SIZES]
    return torch.cat([words[:size] <= end for size, end in zip(SIZES, ends, strict=True)])
