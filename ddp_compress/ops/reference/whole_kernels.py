"""Twin of csrc/cpu/whole_kernels.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of
from ddp_compress.ops.reference.ballot import largest
from ddp_compress.ops.reference.kernel_lists import by_place, positions_of, starts_of
from ddp_compress.ops.reference.topk import topk

BITS = 24  # of the integers that sums are made of: exact in any order


def largest_kernels(
    values: Sequence[Tensor],
    bounds: Tensor,
    numels: Tensor,
    strides: Tensor,
    groups: Tensor,
    ks: Tensor,
    m: int,
    count: int,
) -> Tensor:
    """Find the kernels of one size whose elements are largest, by the sum of magnitudes.

    Elements count as integers of 24 bits, whose unit is a power of two that fits the kernel's
    largest: their sums are exact in any order. Kernels that do not fit into their group, because it
    takes fewer entries, are left out.

    Args:
        values: chunks of the message, [N_c] each, fp32 or fp64, finite; they hold whole parameters.
        bounds: [P + 1], int64, offsets of the P parameters in the message.
        numels: [P], int64, see `split_kernels`.
        strides: [P], int64, see `split_kernels`.
        groups: [P], int64, the group of each parameter; -1 for parameters left out. A group's
            parameters follow one another, but for left-out ones.
        ks: [G], int64, the most entries to take from each group, at least 1.
        m: the size, 2 or more.
        count: how many to find, 0 or more.

    Returns:
        [n, m], like the values: n is ``count``, or how many there are. They are in order; of
        equals the first are taken.

    Raises:
        RuntimeError: shapes or dtypes do not fit.

    Example:
        >>> tables = torch.tensor([0, 6]), torch.tensor([2]), torch.tensor([1])
        >>> groups, ks = torch.tensor([0]), torch.tensor([4])
        >>> values = [torch.tensor([1.0, -1.0, 3.0, 0.0, -2.0, 2.0])]
        >>> largest_kernels(values, *tables, groups, ks, m=2, count=2)
        tensor([[ 3.,  0.],
                [-2.,  2.]])
    """
    parts = by_place(values, bounds, numels, strides)
    fitting = _fitting(numels, groups, ks).tolist()
    mine = [part for part, fits in zip(parts, fitting, strict=True) if fits and part.shape[1] == m]
    rows = torch.cat([parts[0].new_empty(0, m), *mine])
    whole, unit = _integers(rows)
    mass = whole.abs().sum(1) * unit
    return rows[largest(mass.view(torch.int64), count)]


def rank_kernels(
    values: Sequence[Tensor],
    bounds: Tensor,
    numels: Tensor,
    strides: Tensor,
    groups: Tensor,
    ks: Tensor,
    patterns: Sequence[Tensor],
    prices: Tensor,
    single_prices: Tensor,
    topk: Callable[..., Sequence[Tensor]] = topk,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rank entries by what they carry for their price; take the first of every group.

    A kernel of m elements x that fits into its group may travel in ``2 S + 1`` ways: by one of S
    patterns s of signs, by one of these turned, or with its own signs. It then carries ``sum of
    s x``, or the sum of magnitudes, of integers as in `largest_kernels`; but no less than 0. A
    kernel's worth is that over the price, in the best way for it, of equals the first. An entry's
    worth is its magnitude over the price of a single one, or its kernel's worth if that is more.
    Of each group the entries of largest worth are taken, of equals the first, zeros never.

    Kernels all of whose elements are taken travel whole. Of the others those entries travel, alone,
    that are worth more than their kernel. Where a worth is not finite, nothing does.

    Args:
        values: see `largest_kernels`.
        bounds: see `largest_kernels`.
        numels: see `largest_kernels`.
        strides: see `largest_kernels`.
        groups: see `largest_kernels`.
        ks: see `largest_kernels`.
        patterns: [S, m] each, fp64 of 1 and -1, one for every size of kernels that fit.
        prices: [P, 2 S + 1], fp64, of a kernel's ways; positive.
        single_prices: [P], fp64, of a single entry; positive.
        topk: what finds those of largest worth.

    Returns:
        The numbers of the kernels that travel whole [n] (int32, ascending, see `split_kernels`);
        the ways of these, int32; the values that stand for their elements, kernel after kernel:
        what is carried is shared evenly, with the signs of the way (the plus of a zero); and the
        positions of the entries that travel alone (int32, ascending).

    Raises:
        RuntimeError: shapes or dtypes do not fit.

    Example:
        >>> tables = torch.tensor([0, 6]), torch.tensor([2]), torch.tensor([1])
        >>> groups, ks = torch.tensor([0]), torch.tensor([4])
        >>> values = [torch.tensor([0.0, 9.0, -5.0, -3.0, -1.0, 1.0])]
        >>> one = torch.ones(1, 2, dtype=torch.float64)
        >>> prices = 2 * one[:, [0, 0, 0]], 3 * one[0, :1]
        >>> kernels, ways, of_kernels, _ = rank_kernels(values, *tables, groups, ks, [one], *prices)
        >>> kernels.tolist(), ways.tolist(), of_kernels
        ([0, 1], [0, 1], tensor([ 4.5000,  4.5000, -4.0000, -4.0000]))
    """
    parts = by_place(values, bounds, numels, strides)
    signs = {each.shape[1]: to_device_of(each, parts[0]) for each in patterns}
    prices, single_prices = (to_device_of(each, parts[0]) for each in (prices, single_prices))
    fitting = _fitting(numels, groups, ks).tolist()
    worths, kernels = [], []
    for rows, fits, price, single in zip(parts, fitting, prices, single_prices, strict=True):
        worth = rows.abs().double() / single
        kernels.append(_Kernels(rows, worth, signs[rows.shape[1]], price) if fits else None)
        worths.append(worth if kernels[-1] is None else worth.maximum(kernels[-1].worth))
    nothing = parts[0].new_empty(0)
    found, ways, sent, singles = [nothing.int()], [nothing.int()], [nothing], [nothing.long()]
    starts, begins = starts_of(bounds, numels).tolist(), bounds.tolist()
    for p, single in enumerate(_first_of_all(worths, bounds, groups, ks, topk)):
        each = kernels[p]
        if each is not None:
            whole = single.all(1)
            single = single & ~whole[:, None] & (each.alone > each.worth)
            found.append((whole.nonzero().flatten() + starts[p]).int())
            ways.append(each.way[whole, 0].int())
            sent.append(each.sent(whole).to(parts[p].dtype).flatten())
        singles.append(single.flatten().nonzero().flatten() + begins[p])
    positions = positions_of(torch.cat(singles), bounds, numels, strides).sort().values
    return torch.cat(found), torch.cat(ways), torch.cat(sent), positions.int()


def _first_of_all(
    worths: list[Tensor],
    bounds: Tensor,
    groups: Tensor,
    ks: Tensor,
    topk: Callable[..., Sequence[Tensor]],
) -> list[Tensor]:
    """Which elements rank first in their groups: like the worths [n, m], by parameter, bool."""
    worth = torch.cat([each.flatten() for each in worths])
    tables = bounds, groups, ks, host.empty(0, dtype=torch.int64)
    places, _, finite, *_ = topk(
        [worth], [torch.zeros_like(worth)], [], 0.0, *tables, False, [], []
    )
    taken = torch.zeros_like(worth, dtype=torch.bool)
    if finite:
        taken[places.long()] = True
    parts = taken.split(bounds.diff().tolist())
    return [part.view_as(each) for part, each in zip(parts, worths, strict=True)]


class _Kernels:
    """The kernels of a parameter, each in the best way for it.

    Args:
        rows: [n, m].
        alone: [n, m], what every element is worth by itself.
        patterns: [S, m].
        prices: [2 S + 1].
    """

    def __init__(self, rows: Tensor, alone: Tensor, patterns: Tensor, prices: Tensor) -> None:
        self.rows, self.alone, self.patterns = rows, alone, patterns
        whole, unit = _integers(rows)
        fits = whole @ patterns.T
        self.carried = torch.cat([fits, -fits, whole.abs().sum(1, keepdim=True)], 1)
        self.carried = self.carried.clamp(min=0.0) * unit[:, None]
        worth = self.carried / prices
        self.way = worth.argmax(1, keepdim=True)  # [n, 1]
        self.worth = worth.gather(1, self.way)  # [n, 1]

    def sent(self, kernels: Tensor) -> Tensor:
        """What stands for these kernels, a mask [n]: [k, m], every row of one magnitude."""
        rows, way = self.rows[kernels], self.way[kernels]
        last = 2 * len(self.patterns)
        signs = torch.cat([self.patterns, -self.patterns, self.patterns[:1]])[way[:, 0]]
        signs = torch.where(way == last, torch.where(rows < 0, -1.0, 1.0).double(), signs)
        return signs * (self.carried[kernels].gather(1, way) / rows.shape[1])


def _fitting(numels: Tensor, groups: Tensor, ks: Tensor) -> Tensor:
    """Which parameters have kernels that fit into their groups: [P] bool."""
    room = torch.nn.functional.pad(ks, (0, 1))[groups]  # of those in no group, 0
    return (numels > 1) & (numels <= room)


def _integers(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Kernels [n, m] as integers, fp64, and what one of them stands for, [n]."""
    wide = rows.double()
    exponents = torch.frexp(wide.abs().amax(1)).exponent.long().clamp(min=-900)
    unit = (exponents + (1023 - BITS) << 52).view(torch.float64)  # two to that power
    return (wide / unit[:, None]).round(), unit
