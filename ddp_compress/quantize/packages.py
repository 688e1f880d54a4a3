"""Whole kernels of convolutions by the pattern of their signs, other entries by their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.message.entries import Entries
from ddp_compress.message.entry_list import EntryList
from ddp_compress.message.universe import CountedUniverse
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of, to_host
from ddp_compress.ops.reference.wire_format import pack, unpack
from ddp_compress.quantize.signs import Signs
from ddp_compress.quantize.symbols import most_bytes, read_means, read_symbols

if TYPE_CHECKING:
    from ddp_compress.message.plan import Plan
    from ddp_compress.message.random_key import RandomKey
    from ddp_compress.message.universe import Universe

TABLE_BITS = 13  # of a symbol in rANS's table of frequencies
WORD_BITS = 32  # of a pattern: with the number of those before, they fit into 63
MOST_PATTERNS = 32  # each has two symbols of the at most 65 of rANS, one for either sign


@dataclass(frozen=True)
class KernelPatterns(Signs):
    """Three packages: kernels of a pattern, other whole kernels, individual entries.

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
    and package stands for the values. All this is the host's work.

    Source: the appendix of SmartIdx (Table 3, Fig. 4); it is silent on how patterns are found.

    Example:
        >>> from ddp_compress.message.conv_kernels import ConvKernel
        >>> from ddp_compress.message.layout import Layout
        >>> from ddp_compress.message.plan import Plan
        >>> plan = Plan((Layout(("weight",), (12,), (ConvKernel(4),)),), "tensor", density=0.5)
        >>> indices = torch.tensor([0, 8, 9, 10, 11], dtype=torch.int32)
        >>> values = torch.tensor([5.0, 1, -3, 1, 1])
        >>> packages = KernelPatterns().pack(Entries(indices, values), plan)
        >>> [(package.name, package.places.tolist()) for package in packages]
        [('pattern', []), ('kernel', [2]), ('individual', [0])]
        >>> data = torch.cat([package.values for package in packages])
        >>> places = [package.places for package in packages]
        >>> KernelPatterns().unpack(places, data, plan)[0].values
        tensor([ 5.0000,  1.5000, -1.5000,  1.5000,  1.5000])
    """

    def size(self, plan: Plan) -> int:
        """Means of all packages, signs as they are, and patterns that stand for no kernel."""
        patterns = sum(
            1 + (MOST_PATTERNS * m + 7) // 8 + most_bytes(0, 2 * MOST_PATTERNS)
            for m in plan.kernels.sizes
        )
        parameters = len(plan.bounds) - 1
        return (3 * 4 + 2) * parameters + patterns + plan.k // 8

    def universes(self, plan: Plan, universe: Universe) -> list[Universe]:
        """The kernels, twice, where there are any; and all positions."""
        kernels, sizes = plan.kernels, plan.kernels.sizes
        lists: list[Universe] = (
            [CountedUniverse(kernels.starts, universe.k // sizes[0])] * 2 if sizes else []
        )
        return [*lists, universe]

    def pack(self, entries: Entries, plan: Plan, key: RandomKey | None = None) -> list[EntryList]:
        """Find the whole kernels, and what is the least for each."""
        kernels = plan.kernels
        positions, values = to_host(entries.positions), to_host(entries.values)
        places, order = kernels.places(positions).sort()
        whole, single = _whole_kernels(places, plan)
        alone = positions[order[single]].sort()
        individual = self.encode(
            values[order[single]][alone.indices], _counts_within(alone.values, plan)
        )
        packages = [EntryList("individual", alone.values, len(alone.values), individual)]
        if kernels.sizes:
            packages = self._of_kernels(whole, places, values[order], plan) + packages
        return [package.to_device_of(entries.values) for package in packages]

    def _of_kernels(
        self, whole: Tensor, places: Tensor, values: Tensor, plan: Plan
    ) -> list[EntryList]:
        """The packages of these kernels [n], whose elements are among places and values [K]."""
        owners, sizes = _facts(whole, plan)
        begins = torch.searchsorted(places, plan.kernels.first_places(whole))
        shared, streams = host.zeros(len(whole), dtype=torch.bool), []
        for m in plan.kernels.sizes:
            mine = (sizes == m).nonzero().flatten()
            signs = values[begins[mine][:, None] + host.arange(m)].signbit()
            stream, chosen = _encode_patterns(signs)
            streams.append(stream)
            shared[mine[chosen]] = True
        alike, unlike = (values[_ranges(begins[of], sizes[of])] for of in (shared, ~shared))
        means = ops.segment_means(alike.abs(), _entries_within(owners[shared], sizes[shared], plan))
        used = means[_used(owners[shared], plan)]
        patterns = torch.cat([used.view(torch.uint8), *streams])
        signs = self.encode(unlike, _entries_within(owners[~shared], sizes[~shared], plan))
        return [
            EntryList("pattern", whole[shared].int(), len(alike), patterns),
            EntryList("kernel", whole[~shared].int(), len(unlike), signs),
        ]

    def unpack(
        self, places: Sequence[Tensor], values: Tensor, plan: Plan, key: RandomKey | None = None
    ) -> tuple[Entries, Tensor]:
        """The entries, and how many are in every group.

        Raises:
            ValueError: the bytes are bad, or an entry comes twice.
        """
        device, values = values.device, to_host(values)
        *of_kernels, singles = (to_host(each).long() for each in places)
        shared, unlike = of_kernels or (singles[:0], singles[:0])
        alike, used = _decode_kernels(values, shared, plan)
        (owners, sizes), firsts = _facts(unlike, plan), plan.kernels.first_places(unlike)
        counts = _entries_within(owners, sizes, plan)
        split = used + sum(self._bytes(counts))
        unlike_values = self.decode(values[used:split], counts)
        alone = self.decode(values[split:], _counts_within(singles, plan))
        _, lengths = _facts(shared, plan)
        at = [
            _ranges(plan.kernels.first_places(shared), lengths),
            _ranges(firsts, sizes),
        ]
        positions, order = torch.cat([plan.kernels.positions(torch.cat(at)), singles]).sort()
        if (positions.diff() == 0).any():
            raise ValueError("packages: an entry comes twice, expected it in one package alone")
        found = torch.cat([alike, unlike_values, alone])[order]
        entries = Entries(positions.int().to(device), found.to(device))
        return entries, plan.counts(entries.indices)


def _decode_kernels(data: Tensor, shared: Tensor, plan: Plan) -> tuple[Tensor, int]:
    """The values of kernels [n] of a pattern, kernel after kernel, and the bytes they took."""
    owners, sizes = _facts(shared, plan)
    used = _used(owners, plan)
    means = read_means("packages", data, int(used.sum()))
    of_all = host.zeros(len(used), dtype=torch.float32).masked_scatter_(used, means)
    values = of_all[owners].repeat_interleave(sizes)
    at, ends = means.nbytes, sizes.cumsum(0)
    for m in plan.kernels.sizes:
        mine = (sizes == m).nonzero().flatten()
        minus, read = _decode_patterns(data[at:], len(mine), m)
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


def _encode_patterns(signs: Tensor) -> tuple[Tensor, Tensor]:
    """Patterns of kernels of one size, as bytes, and for which of the kernels they stand.

    Args:
        signs: [n, m] bool, True for a minus.

    Returns:
        The number of patterns less 1, the patterns, the symbols, no bytes at all where no pattern
        is shared; and indices into ``signs``.
    """
    n, m = signs.shape
    nothing = host.empty(0, dtype=torch.uint8), host.empty(0, dtype=torch.int64)
    if not n:
        return nothing
    turned = signs[:, 0]
    patterns, number = _distinct(signs ^ turned[:, None])
    counts = torch.bincount(number).tolist()
    shared = [
        pattern
        for pattern, count in sorted(enumerate(counts), key=lambda pair: -pair[1])
        if count * (m - 1 - log2(n / count)) > m + 2 * TABLE_BITS
    ][:MOST_PATTERNS]
    if not shared:
        return nothing
    symbol = host.full((len(patterns),), -1, dtype=torch.int64).index_copy_(
        0, host.tensor(shared, dtype=torch.int64), 2 * host.arange(len(shared))
    )[number]
    chosen = (symbol >= 0).nonzero().flatten()
    symbols = (symbol + turned)[chosen].byte()
    head = host.tensor([len(shared) - 1], dtype=torch.uint8)
    bits = pack(patterns[shared].long().flatten())
    return torch.cat([head, bits, ops.rans_encode(symbols, 2 * len(shared))]), chosen


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of bits [n, m] in their order, and every row's number among them [n].

    Words are sorted in place of rows: many times faster than `unique` in a dimension.
    """
    number = host.zeros(len(rows), dtype=torch.int64)
    for part in rows.split(WORD_BITS, dim=1):
        weights = 2 ** host.arange(part.shape[1]).flip(0)
        words = (number << WORD_BITS) + (part * weights).sum(1)
        number = words.unique(return_inverse=True)[1]
    distinct = rows.new_empty(int(number.max()) + 1, rows.shape[1])
    return distinct.index_copy_(0, number, rows), number


def _decode_patterns(data: Tensor, n: int, m: int) -> tuple[Tensor, int]:
    """The signs [n, m] and the bytes they took: `_encode_patterns` undone, trusting nothing."""
    if not n:
        return host.empty(0, m, dtype=torch.bool), 0
    count = int(data[0]) + 1 if len(data) else 0
    if not 1 <= count <= MOST_PATTERNS:
        raise ValueError(f"packages: {count} patterns, expected 1 to {MOST_PATTERNS}")
    end = 1 + (count * m + 7) // 8
    bits = unpack(data[1:end])
    if len(data) < end:
        raise ValueError(f"packages: got {len(data)} bytes, expected at least {end} for patterns")
    if bits[count * m :].any():
        raise ValueError("packages: an unused bit is set; expected only zeros there")
    symbols, used = read_symbols("packages", data[end:], n, 2 * count)
    patterns = bits[: count * m].view(count, m).bool()
    return patterns[symbols.long() // 2] ^ (symbols % 2).bool()[:, None], end + used
