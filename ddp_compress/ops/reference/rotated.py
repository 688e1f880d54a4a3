"""Twin of csrc/cpu/rotated.cpp."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.hadamard import hadamard, inverse_hadamard
from ddp_compress.ops.reference.random_words import block_salts
from ddp_compress.ops.reference.segment_means import exact_mean
from ddp_compress.ops.reference.uniform import dequantize, quantize

LARGEST, SMALLEST = 8192, 32  # coefficients of a block
SIZES = tuple(SMALLEST << half for half in range(9))
FARTHEST = 1e26  # of a value: its levels are nearer, also where one coefficient stands for all
DEVIATION = math.sqrt(math.pi / 2)  # of normal variables of mean magnitude 1


def rotated_encode(
    values: Tensor,
    sizes: Tensor,
    signs: Tensor,
    noises: Tensor,
    free: Tensor,
    sent: Tensor,
    unbiased: bool,
    iterations: int,
    bits: int,
) -> Tensor:
    """Turn blocks of values, and round some of their coefficients to levels, at random.

    Every group is cut into blocks of 8192, 4096, ... 32 coefficients (`block_sizes`). Of a block:

    1. Values, cut off at 1e26, get their places; free ones hold 0.
    2. They are turned (`hadamard`). With several iterations, in all but the last: coefficients are
       cut off at the standard deviation of normal variables of their mean magnitude, turned back,
       and what that left out comes into the next iteration. The coefficients are the sum.
    3. Those that are sent are rounded (`quantize`).

    Args:
        values: [K], fp32, group after group.
        sizes: [G], int64, values in every group.
        signs: [G], int64, what blocks are turned by; empty: they are not turned.
        noises: [G], int64, what decides how coefficients are rounded.
        free: [256], int64, which of every 32 coefficients, counted from 0, holds no value; empty:
            all do. A smaller block's are the first of them.
        sent: [16352], bool, which coefficients travel: those of a block of n are told from the
            (n - 32)-th on. Empty: all do.
        unbiased: whether those that travel weigh more, so that they stand for the others, too.
        iterations: of Kashin's representation, 1 or more.
        bits: of a code, 1 to 8.

    Returns:
        [B], uint8: the values that fill no block, group after group; the lowest level and the step
        of every block, fp32; the codes of every block.

    Raises:
        RuntimeError: an argument lies outside its range, or the sizes do not fit.

    Source: Caldas et al., Expanding the Reach of Federated Learning by Reducing Client Resource
    Requirements (2018), §3.1; Lyubarskii & Vershynin, Uncertainty Principles and Vector
    Quantization (2010), for Kashin's representation.

    Example:
        >>> none, salts = torch.empty(0, dtype=torch.int64), torch.tensor([7])
        >>> tables = torch.tensor([33]), salts, none, none.bool()
        >>> values = torch.cat([torch.ones(32), torch.tensor([5.0])])
        >>> data = rotated_encode(values, tables[0], salts, salts, *tables[2:], True, 1, bits=8)
        >>> len(data)
        44
        >>> rotated_decode(data, *tables, bits=8)[-1]
        tensor(5.)
    """
    groups = _cut(sizes, signs, free, sent, bits)
    _check_salts("noises", noises, sizes)
    if iterations < 1:
        raise RuntimeError(f"iterations must be 1 or more, got {iterations}")
    _check_numel("values", values, int(sizes.sum()))
    rests, levels, codes = [values[:0]], [], []
    every = values.clamp(-FARTHEST, FARTHEST).split(sizes.tolist())
    for group, of_group, salt in zip(groups, every, noises, strict=True):
        *parts, rest = of_group.split(_pieces(group, len(of_group)))
        for block, part, noise in zip(group, parts, _salts(salt, len(group)), strict=True):
            coefficients = block.coefficients(part, iterations)[block.sent]
            if unbiased:
                coefficients = coefficients * (block.size / len(coefficients))
            code, level = quantize(coefficients, noise, bits)
            codes.append(code)
            levels.append(level)
        rests.append(rest)
    return torch.cat([torch.cat(rests + levels).view(torch.uint8), *codes])


def rotated_decode(
    data: Tensor, sizes: Tensor, signs: Tensor, free: Tensor, sent: Tensor, bits: int
) -> Tensor:
    """The values again, with noise: `rotated_encode` undone.

    Args:
        data: [B], uint8; the padding of codes is not looked at.
        sizes: as encoded, as is all that follows.
        signs: see there.
        free: see there.
        sent: see there; coefficients that did not travel are 0.
        bits: of a code.

    Returns:
        [K], fp32.

    Raises:
        RuntimeError: an argument lies outside its range, or the data are not as many bytes as the
            others ask for.
    """
    groups = _cut(sizes, signs, free, sent, bits)
    blocks = [block for group in groups for block in group]
    code_bytes = [(bits * int(block.sent.sum()) + 7) // 8 for block in blocks]
    pieces = [_pieces(*each) for each in zip(groups, sizes.tolist(), strict=True)]
    rests = [held[-1] for held in pieces]
    numbers = sum(rests) + 2 * len(blocks)
    _check_numel("data", data, 4 * numbers + sum(code_bytes))
    exact, levels = data[: 4 * numbers].clone().view(torch.float32).tensor_split([sum(rests)])
    codes = data[4 * numbers :].split(code_bytes)
    of_blocks = iter(
        block.values(code, level, bits)
        for block, code, level in zip(blocks, codes, levels.view(-1, 2), strict=True)
    )
    values = [exact[:0]]
    for group, rest in zip(groups, exact.split(rests), strict=True):
        values += [*islice(of_blocks, len(group)), rest]
    return torch.cat(values)


def rotated_add(
    out: Tensor,
    first: int,
    data: Sequence[Tensor],
    sizes: Tensor,
    signs: Tensor,
    free: Tensor,
    sent: Tensor,
    bits: int,
    limit: float,
    scale: float,
    afresh: bool = False,
) -> None:
    """Add what W ranks have sent of some whole groups, in rank order.

    ``out += scale * clip(rotated_decode(data[r], ...), limit)`` for r = 0 … W-1, block by block.
    bf16 and fp16 are summed in fp32 and rounded once.

    Args:
        out: [N], fp32, bf16, fp16 or fp64; changed in place.
        first: which value of the message ``out[0]`` is; a group begins there, and one ends with N.
        data: W tensors, see `rotated_decode`, as is what follows.
        sizes: see there.
        signs: see there.
        free: see there.
        sent: see there.
        bits: of a code.
        limit: the most of a value's magnitude.
        scale: factor of every value, 1/W for a mean.
        afresh: whether ``out`` counts as zero before, whatever it holds.

    Raises:
        RuntimeError: see `rotated_decode`; or ``out`` does not hold whole groups.

    Example:
        >>> none = torch.empty(0, dtype=torch.int64)
        >>> tables = torch.tensor([1, 2]), none, none, none.bool()
        >>> data, out = torch.tensor([1.0, 2.0, 3.0]).view(torch.uint8), torch.ones(2)
        >>> rotated_add(out, 1, [data, data], *tables, bits=4, limit=2.5, scale=0.5)
        >>> out
        tensor([3.0000, 3.5000])
    """
    edges = {0, *sizes.cumsum(0).tolist()}
    if not {first, first + len(out)} <= edges:
        raise RuntimeError(
            f"out must hold whole groups, got {len(out)} values from the {first}-th on"
        )
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    total = torch.zeros_like(out, dtype=wide) if afresh else out.to(wide)
    for each in data:
        values = rotated_decode(each, sizes, signs, free, sent, bits)[first:][: len(out)]
        total += values.clamp(-limit, limit).to(wide) * host.tensor(scale, dtype=wide)
    out.copy_(total)


def block_sizes(count: int, hold: int) -> list[int]:
    """The coefficients of a group's blocks: 8192, 4096, ... 32, the largest first.

    Args:
        count: values of the group; what does not fill the smallest block is left over.
        hold: how many values 32 coefficients hold.

    Example:
        >>> block_sizes(100, hold=32)
        [64, 32]
    """
    units, whole = count // hold, LARGEST // SMALLEST
    rest = [whole >> half for half in range(1, whole.bit_length())]
    return [LARGEST] * (units // whole) + [SMALLEST * part for part in rest if units & part]


@dataclass(frozen=True)
class _Block:
    """What both sides know of a block of n coefficients.

    Args:
        salt: [1] int64, what it is turned by; None where it is not.
        filled: [n] bool, which coefficients hold a value.
        sent: [n] bool, which of them travel.
    """

    salt: Tensor | None
    filled: Tensor
    sent: Tensor

    @property
    def size(self) -> int:
        return len(self.filled)

    def coefficients(self, values: Tensor, iterations: int) -> Tensor:
        """Kashin's representation; with one iteration the transform alone."""
        total = host.zeros(self.size, dtype=torch.float32)
        for _ in range(iterations - 1):
            coefficients = self._turned(values)
            mean = host.tensor(exact_mean(coefficients.abs()), dtype=torch.float32)
            limit = mean * DEVIATION
            coefficients = torch.maximum(torch.minimum(coefficients, limit), -limit)
            total += coefficients
            values = values - self._turned_back(coefficients)
        return total + self._turned(values)

    def values(self, codes: Tensor, levels: Tensor, bits: int) -> Tensor:
        coefficients = host.zeros(self.size, dtype=torch.float32)
        coefficients[self.sent] = dequantize(codes, levels, int(self.sent.sum()), bits)
        return self._turned_back(coefficients)

    def _turned(self, values: Tensor) -> Tensor:
        placed = host.zeros(self.size, dtype=torch.float32)
        placed[self.filled] = values
        return placed if self.salt is None else hadamard(placed, self.salt)

    def _turned_back(self, coefficients: Tensor) -> Tensor:
        if self.salt is not None:
            coefficients = inverse_hadamard(coefficients, self.salt)
        return coefficients[self.filled]


def _cut(sizes: Tensor, signs: Tensor, free: Tensor, sent: Tensor, bits: int) -> list[list[_Block]]:
    """The blocks of every group.

    Raises:
        RuntimeError: an argument lies outside its range, or sizes do not fit.
    """
    if min(sizes.tolist(), default=0) < 0 or int(sizes.sum()) >= 2**31:
        raise RuntimeError("sizes must be 0 or more and add up to less than 2**31")
    if len(signs):
        _check_salts("signs", signs, sizes)
    if len(free):
        _check_numel("free", free, LARGEST // SMALLEST)
    for row, place in enumerate(free.tolist()):
        if not 0 <= place < SMALLEST:
            raise RuntimeError(f"free[{row}] is {place}, expected a place within [0, {SMALLEST})")
    if not 1 <= bits <= 8:
        raise RuntimeError(f"bits must lie within 1 and 8, got {bits}")
    filled = host.full((LARGEST,), True, dtype=torch.bool)
    filled[SMALLEST * host.arange(len(free)) + free] = False
    every = host.full((2 * LARGEST - SMALLEST,), True, dtype=torch.bool)
    if len(sent):
        _check_numel("sent", sent, len(every))
        every = sent
    masks = {size: every[size - SMALLEST :][:size] for size in SIZES}
    for n, mask in masks.items():
        if not mask.any():
            raise RuntimeError(f"sent must hold one of the {n} coefficients of a block at least")
    groups = []
    for group, count in enumerate(sizes.tolist()):
        each = block_sizes(count, SMALLEST - bool(len(free)))
        salts = _salts(signs[group], len(each)) if len(signs) else [None] * len(each)
        blocks = zip(each, salts, strict=True)
        groups.append([_Block(salt, filled[:size], masks[size]) for size, salt in blocks])
    return groups


def _salts(salt: Tensor, blocks: int) -> Tensor:
    """Those of a group's blocks."""
    return block_salts(salt.view(1), host.tensor([blocks], dtype=torch.int64))


def _pieces(group: list[_Block], count: int) -> list[int]:
    """How many values are in every block of a group, and left over."""
    held = [int(block.filled.sum()) for block in group]
    return [*held, count - sum(held)]


def _check_salts(name: str, salts: Tensor, sizes: Tensor) -> None:
    if len(salts) != len(sizes):
        raise RuntimeError(
            f"{name} has {len(salts)} entries, expected {len(sizes)}, one for each of sizes"
        )


def _check_numel(name: str, data: Tensor, expected: int) -> None:
    if len(data) != expected:
        raise RuntimeError(f"{name} has {len(data)} elements, expected {expected}")
