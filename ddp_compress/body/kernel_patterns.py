"""Whole kernels of convolutions by the pattern of their signs, other entries by their own."""

from __future__ import annotations

from dataclasses import dataclass
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
from ddp_compress.ops.devices import to_device, to_device_of, to_host
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
        places, order = kernels.places(positions).sort()
        whole, single = _whole_kernels(places, plan)
        alone = positions[order[single]].sort()
        alone_values = values[order[single]][alone.indices]
        lists = [
            _List(
                "individual",
                len(alone.values),
                alone.values,
                quantize.encode(alone_values, Context(_counts_within(alone.values, plan))),
            )
        ]
        if kernels.sizes:
            lists = _lists_of_kernels(whole, places, values[order], plan, quantize) + lists
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
            places.append(to_host(found).long())
            data = data[used:]
        *of_kernels, singles = places
        shared, other = of_kernels or (singles[:0], singles[:0])
        values, quantize = to_host(data), recipe.quantize
        shared_values, used = _decode_kernels(values, shared, plan)
        owners, sizes = _facts(other, plan)
        counts = _entries_within(owners, sizes, plan)
        split = used + quantize.size(counts)
        other_values = quantize.decode(values[used:split], Context(counts))
        alone = quantize.decode(values[split:], Context(_counts_within(singles, plan)))
        at = [
            _ranges(plan.kernels.first_places(shared), _facts(shared, plan)[1]),
            _ranges(plan.kernels.first_places(other), sizes),
        ]
        positions, order = torch.cat([plan.kernels.positions(torch.cat(at)), singles]).sort()
        if (positions.diff() == 0).any():
            raise ValueError("patterns: an entry comes twice, expected it in one list alone")
        found_values = torch.cat([shared_values, other_values, alone])[order]
        entries = Entries(to_device(positions.int(), device), to_device(found_values, device))
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


def _lists_of_kernels(
    whole: Tensor, places: Tensor, values: Tensor, plan: Plan, quantize: Quantize
) -> list[_List]:
    """The lists of these kernels [n], whose elements are among places and values [K]."""
    owners, sizes = _facts(whole, plan)
    begins = torch.searchsorted(places, plan.kernels.first_places(whole))
    shared, streams = host.zeros(len(whole), dtype=torch.bool), []
    for m in plan.kernels.sizes:
        mine = (sizes == m).nonzero().flatten()
        minus = values[begins[mine][:, None] + host.arange(m)].signbit()
        stream, chosen = encode_patterns(minus)
        streams.append(stream)
        shared[mine[chosen]] = True
    of_shared, of_others = (values[_ranges(begins[of], sizes[of])] for of in (shared, ~shared))
    counts, other_counts = (
        _entries_within(owners[of], sizes[of], plan) for of in (shared, ~shared)
    )
    means = ops.segment_means(of_shared.abs(), counts)[_used(owners[shared], plan)]
    patterns = torch.cat([means.view(torch.uint8), *streams])
    return [
        _List("pattern", len(of_shared), whole[shared].int(), patterns),
        _List(
            "kernel",
            len(of_others),
            whole[~shared].int(),
            quantize.encode(of_others, Context(other_counts)),
        ),
    ]


def _decode_kernels(data: Tensor, shared: Tensor, plan: Plan) -> tuple[Tensor, int]:
    """The values of kernels [n] of a pattern, kernel after kernel, and the bytes they took."""
    owners, sizes = _facts(shared, plan)
    used = _used(owners, plan)
    means = read_means("patterns", data, int(used.sum()))
    of_all = host.zeros(len(used), dtype=torch.float32).masked_scatter_(used, means)
    values = of_all[owners].repeat_interleave(sizes)
    at, ends = means.nbytes, sizes.cumsum(0)
    for m in plan.kernels.sizes:
        mine = (sizes == m).nonzero().flatten()
        minus, read = decode_patterns(data[at:], len(mine), m)
        elements = (ends[mine] - m)[:, None] + host.arange(m)
        values[elements] = torch.where(minus, -values[elements], values[elements])
        at += read
    return values, at


def _whole_kernels(places: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The kernels [n] all of whose elements are among ascending places [K]; the other places."""
    kernels = plan.kernels
    owner = torch.searchsorted(plan.bounds, places, right=True) - 1
    first = places - (places - plan.bounds[owner]) % kernels.numels[owner]
    firsts, inverse, counts = first.unique_consecutive(return_inverse=True, return_counts=True)
    owner = torch.searchsorted(plan.bounds, firsts, right=True) - 1
    numels = kernels.numels[owner]
    whole = (counts == numels) & (numels > 1)
    number = (firsts - plan.bounds[owner]) // numels + kernels.starts[owner]
    return number[whole], ~whole[inverse]


def _facts(kernels: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The parameter and the size [n] of each of these kernels [n]."""
    owners = plan.kernels.owners(kernels)
    return owners, plan.kernels.numels[owners]


def _entries_within(owners: Tensor, sizes: Tensor, plan: Plan) -> Tensor:
    """Entries of every parameter, [P] int64, where kernels have these owners and sizes [n]."""
    counts = host.zeros(len(plan.bounds) - 1, dtype=torch.int64)
    return counts.index_add_(0, owners, sizes)


def _counts_within(positions: Tensor, plan: Plan) -> Tensor:
    """How many of the ascending positions [K] lie in every parameter, [P] int64."""
    return torch.searchsorted(
        positions, to_device_of(plan.bounds, positions).to(positions.dtype)
    ).diff()


def _used(owners: Tensor, plan: Plan) -> Tensor:
    """Which parameters own some of the kernels: [P] bool."""
    return torch.bincount(owners, minlength=len(plan.bounds) - 1) > 0


def _ranges(begins: Tensor, sizes: Tensor) -> Tensor:
    """``begin .. begin + size`` one after another: [sum of sizes] int64."""
    ends = sizes.cumsum(0)
    return host.arange(int(sizes.sum())) + (begins - ends + sizes).repeat_interleave(sizes)
