"""Rotate values, send some coefficients, rounded at random: right on average."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_count, check_int, check_one_of, check_within
from ddp_compress.message.context import Context
from ddp_compress.message.plan import entry_count
from ddp_compress.message.random_key import RandomKey
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of
from ddp_compress.ops.reference import block_salts, random_words
from ddp_compress.quantize.blocks import SMALLEST, Blocks, blocks
from ddp_compress.quantize.symbols import check_size, read_means
from ddp_compress.schedules import check_density

Transform = Literal["hadamard", "kashin", "none"]
FARTHEST = 4e34  # of a level: 8192 of them have a finite sum
LIMIT = 1e26  # of a value: its levels are nearer, also where one coefficient stands for all


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
       `reference.uniform_encode`); no two ranks draw alike.

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
        cut = self._cut(counts)
        return 4 * self._numbers(cut) + self._code_bytes(cut)

    def encode(self, values: Tensor, context: Context) -> Tensor:
        """The exact values and the blocks' levels, fp32, then their codes."""
        cut, key = self._cut(context.counts), context.key
        values, left_over = cut.split(values.clamp(-LIMIT, LIMIT).float())
        coefficients = self._turned(values, cut, key)
        if self.keep < 1:
            coefficients = coefficients[to_device_of(self._sent(cut, key), values)]
            if self.unbiased:
                both = zip(cut.sizes, cut.kept_sizes, strict=True)
                weights = host.tensor([size / kept for size, kept in both], dtype=torch.float32)
                coefficients = coefficients * _each(weights, cut.kept_sizes, values)
        salts = block_salts(key.per_rank(self.seed), cut.per_group)
        codes, levels = ops.uniform_encode(coefficients, cut.kept_bounds, salts, self.bits)
        return torch.cat([left_over.view(torch.uint8), levels.view(torch.uint8), codes])

    def decode(self, data: Tensor, context: Context) -> Tensor:
        """The values again, with noise: fp32 [K]."""
        cut, key = self._cut(context.counts), context.key
        numbers = self._numbers(cut)
        check_size("rotated", data, 4 * numbers + self._code_bytes(cut))
        left_over, levels = read_means("rotated", data, numbers).tensor_split([cut.left_over])
        lowest, step = levels.view(-1, 2).unbind(1)
        highest = lowest + (2**self.bits - 1) * step
        if not (torch.maximum(lowest.abs(), highest.abs()) <= FARTHEST).all():
            raise ValueError(f"rotated: a level is farther from 0 than {FARTHEST:g}")
        coefficients = ops.uniform_decode(data[4 * numbers :], levels, cut.kept_bounds, self.bits)
        if self.keep < 1:
            sent = to_device_of(self._sent(cut, key), data)
            coefficients = levels.new_zeros(sum(cut.sizes)).index_copy_(0, sent, coefficients)
        return cut.join(self._turned_back(coefficients, cut, key), left_over)

    def _cut(self, counts: Tensor) -> Blocks:
        hold = SMALLEST - 1 if self.transform == "kashin" else SMALLEST
        return blocks(tuple(counts.tolist()), hold, self.keep)

    @staticmethod
    def _numbers(cut: Blocks) -> int:
        """How many fp32 numbers travel before the codes."""
        return cut.left_over + 2 * len(cut.sizes)

    def _code_bytes(self, cut: Blocks) -> int:
        return sum((self.bits * kept + 7) // 8 for kept in cut.kept_sizes)

    def _turned(self, values: Tensor, cut: Blocks, key: RandomKey) -> Tensor:
        """The coefficients of values, which may be overwritten."""
        if self.transform == "none":
            return values
        salts = self._signs(cut, key)
        if self.transform == "hadamard":
            ops.hadamard(values, cut.bounds, salts, inverse=False)
            return values
        places = to_device_of(self._filled(cut, key), values)
        return _kashin(values, places, cut, salts, self.iterations)

    def _turned_back(self, coefficients: Tensor, cut: Blocks, key: RandomKey) -> Tensor:
        """The values of coefficients, which may be overwritten."""
        if self.transform == "none":
            return coefficients
        ops.hadamard(coefficients, cut.bounds, self._signs(cut, key), inverse=True)
        if self.transform == "hadamard":
            return coefficients
        return coefficients[to_device_of(self._filled(cut, key), coefficients)]

    def _signs(self, cut: Blocks, key: RandomKey) -> Tensor:
        """A salt for every block, the same on all ranks."""
        return block_salts(key.common(self.seed), cut.per_group)

    def _sent(self, cut: Blocks, key: RandomKey) -> Tensor:
        """Positions of the coefficients that are sent: in blocks of one size the same."""
        salt = key.single(self.seed)

        def some_of(size: int) -> Tensor:
            order = random_words(host.arange(size), salt).argsort(stable=True)
            return order[: entry_count(self.keep, size)].sort().values

        return cut.places(some_of)

    def _filled(self, cut: Blocks, key: RandomKey) -> Tensor:
        """Positions of values among the coefficients of Kashin's representation.

        One of every 32 is left free. They are drawn, because the free ones must not lie in line
        with the rows of a Hadamard matrix: half of them, say, would only repeat the other half.
        """
        salt = key.single(self.seed)

        def all_but_free(size: int) -> Tensor:
            starts = host.arange(0, size, SMALLEST)
            free = starts + random_words(starts, salt) % SMALLEST
            is_filled = host.full((size,), True, dtype=torch.bool).index_fill_(0, free, 0)
            return is_filled.nonzero().flatten()

        return cut.places(all_but_free)


def _kashin(values: Tensor, places: Tensor, cut: Blocks, salts: Tensor, iterations: int) -> Tensor:
    """Coefficients of the values [K], more of them than values, and none far from 0.

    Coefficients are cut off at the standard deviation of normal variables of their mean magnitude,
    turned back, and what that left out comes into the next iteration. The last one cuts off
    nothing, so that the representation is exact.
    """
    sizes = host.tensor(cut.sizes, dtype=torch.int64)
    total = values.new_zeros(sum(cut.sizes))
    for _ in range(iterations - 1):
        coefficients = torch.zeros_like(total).index_copy_(0, places, values)
        ops.hadamard(coefficients, cut.bounds, salts, inverse=False)
        deviations = ops.segment_means(coefficients.abs(), sizes) * math.sqrt(math.pi / 2)
        limits = _each(deviations, cut.sizes, values)
        coefficients = torch.maximum(torch.minimum(coefficients, limits), -limits)
        total += coefficients
        ops.hadamard(coefficients, cut.bounds, salts, inverse=True)
        values = values - coefficients[places]
    rest = torch.zeros_like(total).index_copy_(0, places, values)
    ops.hadamard(rest, cut.bounds, salts, inverse=False)
    return total + rest


def _each(of_blocks: Tensor, sizes: list[int], like: Tensor) -> Tensor:
    """What a block has, for every one of its coefficients, beside another tensor."""
    counts = host.tensor(sizes, dtype=torch.int64)
    return to_device_of(of_blocks, like).repeat_interleave(
        to_device_of(counts, like), output_size=sum(sizes)
    )
