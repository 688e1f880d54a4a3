"""Whole kernels of convolutions by the pattern of their signs, other entries by their own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.body.entry_list import EntryList
from ddp_compress.body.sign_patterns import decode_patterns, encode_patterns, unused_bytes
from ddp_compress.message.context import Context
from ddp_compress.message.entries import Entries
from ddp_compress.message.plan import Plan
from ddp_compress.message.random_key import RandomKey
from ddp_compress.message.universe import CountedUniverse, Universe
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device, to_host
from ddp_compress.quantize import Signs
from ddp_compress.quantize.symbols import read_means

if TYPE_CHECKING:
    from ddp_compress.recipe import Quantize, Recipe


@dataclass(frozen=True)
class KernelPatterns:
    """Three lists: kernels of a pattern, other whole kernels, individual entries.

    Wherever all elements of a convolution's kernel are sent, one position stands for them. The
    signs of a kernel are a *pattern* and a sign: the pattern is the signs as they are where the
    first is a plus, all turned where it is not.

    * *pattern*: kernels whose patterns are shared: a position, and the number of the pattern with
      its sign, entropy-coded (see `reference.rans_encode`). Patterns are sent once, a bit an
      element, those of every size of kernels by themselves.
    * *kernel*: other whole kernels: a position, and a bit for the sign of every element.
    * *individual*: all other entries: a position and a sign each.

    A pattern is shared if that takes fewer bits than the signs of its kernels, counted with its
    own bits and with its place in the table of frequencies. A mean magnitude for every parameter
    and list stands for the values. All this is the host's work.

    Source: the appendix of SmartIdx (Table 3, Fig. 4); it is silent on how patterns are found.

    Example:
        >>> from ddp_compress.message.conv_kernels import ConvKernel
        >>> from ddp_compress.message.layout import Layout
        >>> from ddp_compress.message.plan import Plan
        >>> from ddp_compress.message.random_key import RandomKey
        >>> from ddp_compress.recipes import smartidx
        >>> plan = Plan((Layout(("weight",), (12,), (ConvKernel(4),)),), "tensor", density=0.5)
        >>> indices = torch.tensor([0, 8, 9, 10, 11], dtype=torch.int32)
        >>> entries = Entries(indices, torch.tensor([5.0, 1, -3, 1, 1]))
        >>> how = plan, plan, smartidx(), RandomKey(plan.group_names, step=0, rank=0)
        >>> lists = KernelPatterns().encode(entries, *how)
        >>> [(each.name, each.count) for each in lists]
        [('pattern', 0), ('kernel', 4), ('individual', 1)]
        >>> data = [each.positions for each in lists] + [each.values for each in lists]
        >>> KernelPatterns().decode(torch.cat(data), *how)[0].values
        tensor([ 5.0000,  1.5000, -1.5000,  1.5000,  1.5000])
    """

    def check(self, recipe: Recipe) -> None:
        """Raise a `ValueError` unless values are signs, and positions travel."""
        if recipe.quantize != Signs():
            raise ValueError(
                f"body={self!r} holds the signs of kernels: it takes quantize=Signs(), "
                f"got quantize={recipe.quantize!r}"
            )
        if recipe.select.sends_all:
            raise ValueError(
                f"body={self!r} holds positions, and select={recipe.select!r} sends all entries"
            )

    def size(self, plan: Plan, recipe: Recipe) -> int:
        """All positions, all means, signs as they are, and patterns that stand for no kernel."""
        positions = sum(map(recipe.codec.size, _universes(plan, plan)))
        patterns = sum(map(unused_bytes, plan.kernels.sizes))
        parameters = len(plan.bounds) - 1
        return positions + (3 * 4 + 2) * parameters + patterns + plan.k // 8

    def encode(
        self, entries: Entries, plan: Plan, universe: Universe, recipe: Recipe, key: RandomKey
    ) -> list[EntryList]:
        """Find the whole kernels, and what is the least for each."""
        kernels, quantize = plan.kernels, recipe.quantize
        positions, values = to_host(entries.positions), to_host(entries.values)
        whole, of_whole, alone, of_alone = ops.split_kernels(positions, values, *kernels.tables)
        single = quantize.encode(of_alone, Context(_counts(alone, plan.bounds)))
        lists = [_List("individual", len(alone), alone, single)]
        if kernels.sizes:
            lists = _lists_of_kernels(whole, of_whole, plan, quantize) + lists
        device = entries.values.device
        return [
            EntryList(
                each.name,
                each.count,
                to_device(recipe.codec.encode(each.places, where), device),
                to_device(each.values, device),
            )
            for each, where in zip(lists, _universes(plan, universe), strict=True)
        ]

    def decode(
        self, data: Tensor, plan: Plan, universe: Universe, recipe: Recipe, key: RandomKey
    ) -> tuple[Entries, Tensor]:
        """The entries, and how many are in every group.

        Raises:
            ValueError: the bytes are bad, or an entry comes twice.
        """
        device, places = data.device, []
        for where in _universes(plan, universe):
            found, used = recipe.codec.decode(data, where)
            places.append(to_host(found))
            data = data[used:]
        *of_kernels, singles = places
        shared, other = of_kernels or (singles[:0], singles[:0])
        values, quantize = to_host(data), recipe.quantize
        shared_values, used = _decode_kernels(values, shared, plan)
        counts = _entries_within(other, plan)
        split = used + quantize.size(counts)
        other_values = quantize.decode(values[used:split], Context(counts))
        alone = quantize.decode(values[split:], Context(_counts(singles, plan.bounds)))
        lists = [shared, other], [shared_values, other_values], singles, alone
        positions, found_values = ops.join_kernels(*lists, *plan.kernels.tables)
        if (positions[1:] == positions[:-1]).any():
            raise ValueError("patterns: an entry comes twice, expected it in one list alone")
        entries = Entries(to_device(positions, device), to_device(found_values, device))
        return entries, plan.counts(entries.indices)


@dataclass(frozen=True)
class _List:
    """Entries that share a list of places: what one place costs, they share."""

    name: str
    count: int
    places: Tensor  # [n] int32, ascending
    values: Tensor  # their bytes


def _universes(plan: Plan, universe: Universe) -> list[Universe]:
    """Where the places of every list lie: among kernels, twice, if there are any; among entries."""
    kernels, sizes = plan.kernels, plan.kernels.sizes
    if not sizes:
        return [universe]
    most = min(universe.k // sizes[0], int(kernels.starts[-1]))
    return [CountedUniverse(kernels.starts, most)] * 2 + [universe]


def _lists_of_kernels(whole: Tensor, values: Tensor, plan: Plan, quantize: Quantize) -> list[_List]:
    """The lists of these kernels [n], of the values of their elements, kernel after kernel."""
    runs = _runs(whole, plan)
    parts = values.split([m * n for m, n in runs])
    rows = [part.view(n, m) for part, (m, n) in zip(parts, runs, strict=True)]
    streams, shared = [], [host.zeros(n, dtype=torch.bool) for _, n in runs]
    for m in plan.kernels.sizes:
        mine = [i for i, (size, _) in enumerate(runs) if size == m]
        stream, chosen = encode_patterns(_joined([rows[i] for i in mine]).signbit())
        streams.append(stream)
        flags = host.zeros(sum(runs[i][1] for i in mine), dtype=torch.bool)
        flags[chosen] = True
        for i, part in zip(mine, flags.split([runs[i][1] for i in mine]), strict=True):
            shared[i] = part
    of_shared = _joined([each[which].flatten() for each, which in zip(rows, shared, strict=True)])
    of_others = _joined([each[~which].flatten() for each, which in zip(rows, shared, strict=True)])
    flags = _joined(shared)
    patterns, others = whole[flags], whole[~flags]
    counts = _entries_within(patterns, plan)
    means = ops.segment_means(of_shared.abs(), counts)[counts > 0]
    context = Context(_entries_within(others, plan))
    return [
        _List(
            "pattern",
            len(of_shared),
            patterns,
            torch.cat([means.view(torch.uint8), *streams]),
        ),
        _List("kernel", len(of_others), others, quantize.encode(of_others, context)),
    ]


def _decode_kernels(data: Tensor, shared: Tensor, plan: Plan) -> tuple[Tensor, int]:
    """The values of kernels [n] of a pattern, kernel after kernel, and the bytes they took."""
    counts, runs = _counts(shared, plan.kernels.starts), _runs(shared, plan)
    means = read_means("patterns", data, int((counts > 0).sum()))
    of_kernels = means.repeat_interleave(counts[counts > 0]).split([n for _, n in runs])
    at, values = means.nbytes, [means[:0]] * len(runs)
    for m in plan.kernels.sizes:
        mine = [i for i, (size, _) in enumerate(runs) if size == m]
        minus, read = decode_patterns(data[at:], sum(runs[i][1] for i in mine), m)
        at += read
        for i, part in zip(mine, minus.split([runs[i][1] for i in mine]), strict=True):
            mean = of_kernels[i][:, None]
            values[i] = torch.where(part, -mean, mean).flatten()
    return (_joined(values) if values else means), at


def _runs(kernels: Tensor, plan: Plan) -> list[tuple[int, int]]:
    """Sizes of neighbouring kernels, and how many of these [n], ascending, have that size."""
    counts: list[int] = _counts(kernels, plan.kernels.starts).tolist()
    pairs = zip(plan.kernels.numels.tolist(), counts, strict=True)
    by_size = groupby((pair for pair in pairs if pair[0] > 1), key=itemgetter(0))
    return [(m, sum(n for _, n in each)) for m, each in by_size]


def _joined(parts: list[Tensor]) -> Tensor:
    """One tensor of several; mostly there is but one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _entries_within(kernels: Tensor, plan: Plan) -> Tensor:
    """How many elements of these kernels [n], ascending, lie in every parameter: [P] int64."""
    return _counts(kernels, plan.kernels.starts) * plan.kernels.numels


def _counts(numbers: Tensor, bounds: Tensor) -> Tensor:
    """How many of some ascending numbers lie between each two bounds: [P] int64."""
    return torch.searchsorted(numbers, bounds.to(numbers.dtype)).diff()
