"""Send whole kernels of convolutions, and single entries where these are worth their bits."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from typing import ClassVar

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_count, check_one_of
from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import SCOPES, Scope
from ddp_compress.message.message import Message
from ddp_compress.message.plan import Plan
from ddp_compress.message.selection import Selection
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of, to_host
from ddp_compress.schedules import Schedule, check_density

GAP_BITS = 1.44  # log2(e): of a position among rare ones, beside -log2 of their share
BITS = 24  # of the integers that sums are made of: exact in any order
LEARN_FROM = 2048  # kernels, at most, that patterns are learnt from
TURNS = 4  # of the learning


@dataclass(frozen=True)
class WholeKernels:
    """The entries that carry most for their bits: whole kernels, or alone.

    A kernel of m elements x may travel as one position, and either the number of a shared pattern
    of signs or m signs; its elements then get one magnitude. So it carries ``|sum of s x|``, with
    ``s`` the pattern, or ``sum of |x|``; an entry alone carries ``|x|``. Each way of travelling has
    a price: the bits of a position, from how many others of its parameter are sent, and those of
    signs, from how often their pattern is. A kernel is ranked by the best of its ways, magnitude
    carried a bit; an entry by its own or by its kernel's, whichever is more. The first
    ``max(1, round(density * N))`` are sent. Prices come from a first ranking at equal prices.

    Where a kernel's signs differ from its pattern, an entry is sent with the wrong sign: the
    residual keeps what that adds. A kernel that is not wholly within the density is not sent.

    Patterns are learnt in each step from the largest kernels of a size: from those that the
    patterns so far fit worst, then moved to the majority of the kernels that they fit best.

    Args:
        density: share of the elements, in (0, 1], or a schedule of it.
        scope: what one ranking runs over, see `TopK`.
        patterns: how many shared patterns there are of every size of kernels, 1 or more; each is
            used with either sign.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: the appendix of SmartIdx. It does not say how kernels are ranked, nor how patterns are
    found: here it is as measured best (``bench/smartidx.py``).

    Example:
        >>> WholeKernels(0.1)
        WholeKernels(density=0.1, scope='model', patterns=2)
    """

    density: float | Schedule
    scope: Scope = "model"
    patterns: int = 2

    sends_all: ClassVar[bool] = False
    tensors: ClassVar[Mapping[str, torch.dtype | None]] = {}

    def __post_init__(self) -> None:
        if not callable(self.density):
            check_density(self.density, "density")
        check_one_of("scope", self.scope, SCOPES)
        check_count("patterns", self.patterns, least=1)

    def __call__(self, message: Message) -> Selection:
        """Rank twice, the second time at the prices that the first has found."""
        flat = message.accumulated()
        if not flat.isfinite().all():
            return Selection(Entries(flat[:0].int(), flat[:0]), False)
        ranking = _Ranking(message, flat, self.patterns)
        chosen = ranking.choose()
        ranking.learn_prices(chosen)
        places, values = ranking.entries(ranking.choose())
        positions, order = message.plan.kernels.positions(places).sort()
        return Selection(Entries(positions.int(), values[order].to(flat.dtype)), True)


class _Kernels:
    """Kernels as integers in fp64, whose sums are exact.

    Args:
        rows: [n, m] fp64, the kernels.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        exponents = torch.frexp(rows.abs().amax(1)).exponent.long().clamp(min=-900)
        self.unit = (exponents + (1023 - BITS) << 52).view(torch.float64)  # two to that power, [n]
        self.whole = (rows / self.unit[:, None]).round()
        self.mass = self.whole.abs().sum(1)  # [n]


class _Ways:
    """The ways in which the kernels of one parameter may travel.

    Args:
        kernels: n of them, of m elements.
        patterns: [S, m] fp64 of 1 and -1.
    """

    def __init__(self, kernels: _Kernels, patterns: Tensor) -> None:
        self.rows = kernels.rows
        self.patterns = patterns
        fits = kernels.whole @ patterns.T
        carried = torch.cat([fits, -fits, kernels.mass[:, None]], 1)
        self.carried = carried.clamp_(min=0.0) * kernels.unit[:, None]  # [n, 2 S + 1]

    def best(self, prices: Tensor) -> tuple[Tensor, Tensor]:
        """The best way for every kernel [n], and what it carries a bit [n]."""
        worth = self.carried / to_device_of(prices, self.carried)
        way = worth.argmax(1)
        return way, worth.gather(1, way[:, None])[:, 0]

    def sent(self, kernels: Tensor, ways: Tensor) -> Tensor:
        """What the given kernels [k] are sent as: [k, m], all of one magnitude."""
        rows = self.rows[kernels]
        patterns = torch.cat([self.patterns, -self.patterns])
        last = len(patterns)
        signs = patterns[ways.clamp(max=last - 1)]
        signs = torch.where((ways == last)[:, None], torch.where(rows < 0, -1.0, 1.0), signs)
        carried = self.carried[kernels].gather(1, ways[:, None])
        return signs * (carried / rows.shape[1])


class _Ranking:
    """All entries of a message, by what they carry for their bits."""

    def __init__(self, message: Message, flat: Tensor, patterns: int) -> None:
        self._plan = plan = message.plan
        self._groups = message.groups
        self._bounds: list[int] = plan.bounds.tolist()
        self._numels: list[int] = plan.kernels.numels.tolist()
        self._values = plan.kernels.gather(flat).double()
        live = self._groups >= 0
        if not bool(live.all()):
            ours = live.repeat_interleave(plan.bounds.diff())
            self._values = self._values * to_device_of(ours, self._values)
        self._parts = self._values.split(plan.bounds.diff().tolist())  # by parameter
        self._ways = self._find_ways(patterns)
        share = max(plan.k, 1) / max(plan.numel, 1)
        self._gaps = [GAP_BITS - log2(share)] * len(self._numels)  # of a position, by parameter
        self._single = [GAP_BITS - log2(share) + 1.0] * len(self._numels)
        self._signs = {
            m: [log2(2 * patterns)] * (2 * patterns) + [float(m)] for m in plan.kernels.sizes
        }

    def _find_ways(self, patterns: int) -> dict[int, _Ways]:
        """By parameter, of those whose kernels have a group that can hold one."""
        room = self._plan.ks[self._groups.clamp(min=0)] if len(self._plan.ks) else self._groups
        fitting = (self._groups >= 0) & (self._plan.kernels.numels <= room)
        conv = [p for p in fitting.nonzero().flatten().tolist() if self._numels[p] > 1]
        ways: dict[int, _Ways] = {}
        for m in self._plan.kernels.sizes:
            mine = [p for p in conv if self._numels[p] == m]
            if mine:
                kernels = [_Kernels(self._parts[p].view(-1, m)) for p in mine]
                learnt = to_device_of(_learn(_largest(kernels, self._plan), patterns), self._values)
                ways |= {p: _Ways(each, learnt) for p, each in zip(mine, kernels, strict=True)}
        return ways

    def choose(self) -> Tensor:
        """The places [K] int64 of the entries that rank first, not yet without broken kernels."""
        self._best: dict[int, tuple[Tensor, Tensor]] = {}
        worths = []
        for parameter, price in enumerate(self._single):
            worth = self._parts[parameter].abs() / price
            if parameter in self._ways:
                m = self._numels[parameter]
                signs = host.tensor(self._signs[m], dtype=torch.float64)
                way, carried = self._ways[parameter].best(self._gaps[parameter] + signs)
                self._best[parameter] = way, carried
                worth = worth.view(-1, m).maximum(carried[:, None]).flatten()
            worths.append(worth)
        worth, plan = torch.cat(worths), self._plan
        tables = plan.bounds, self._groups, plan.ks, host.empty(0, dtype=torch.int64)
        places, *_ = ops.topk([worth], [torch.zeros_like(worth)], [], 0.0, *tables, False, [], [])
        return places.long()

    def learn_prices(self, places: Tensor) -> None:
        """Set prices to what the entries at these places cost."""
        taken = {m: host.zeros(len(signs), dtype=torch.float32) for m, signs in self._signs.items()}
        for parameter, within in enumerate(self._within(places)):
            m, n = self._numels[parameter], len(self._parts[parameter])
            whole, singles = self._split(parameter, within)
            self._single[parameter] = 1.0 + _gap(len(singles), n)
            if parameter in self._ways:
                self._gaps[parameter] = _gap(len(whole), n // m)
                way, _ = self._best[parameter]
                taken[m] += to_host(torch.bincount(way[whole], minlength=len(taken[m])))
        for m, counts in taken.items():
            shares = (counts + 1) / (counts.sum() + len(counts))
            self._signs[m] = [-log2(share) for share in shares.tolist()]
            self._signs[m][-1] += m

    def entries(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Of the entries at ascending places: the places and values [K] of those to send."""
        found = []
        for parameter, within in enumerate(self._within(places)):
            start, values = self._bounds[parameter], self._parts[parameter]
            whole, singles = self._split(parameter, within)
            found.append((start + singles, values[singles]))
            if parameter in self._ways:
                way, _ = self._best[parameter]
                m = self._numels[parameter]
                at = whole[:, None] * m + torch.arange(m, device=whole.device, dtype=torch.int64)
                sent = self._ways[parameter].sent(whole, way[whole])
                found.append((start + at.flatten(), sent.flatten()))
        return torch.cat([at for at, _ in found]), torch.cat([values for _, values in found])

    def _within(self, places: Tensor) -> list[Tensor]:
        """The places in every parameter, counted from its start."""
        edges = torch.searchsorted(places, to_device_of(self._plan.bounds, places))
        parts = places.split(to_host(edges.diff()).tolist())
        return [part - start for part, start in zip(parts, self._bounds, strict=False)]

    def _split(self, parameter: int, within: Tensor) -> tuple[Tensor, Tensor]:
        """The whole kernels of a parameter and its single entries; the rest is of broken ones."""
        if parameter not in self._ways:
            return within[:0], within
        m, (_, carried) = self._numels[parameter], self._best[parameter]
        kernel = within // m
        whole = torch.bincount(kernel, minlength=len(carried)) == m
        alone = self._parts[parameter][within].abs() / self._single[parameter]
        singles = within[~whole[kernel] & (alone > carried[kernel])]
        return whole.nonzero().flatten(), singles


def _gap(count: int, n: int) -> float:
    """The bits of one of ``count`` positions among n."""
    return GAP_BITS + log2((n + 1) / (count + 1))


def _largest(kernels: list[_Kernels], plan: Plan) -> Tensor:
    """The kernels [n, m] of largest magnitude, on the host, of equals the first."""
    mass = torch.cat([each.mass * each.unit for each in kernels])
    share = plan.k / plan.numel
    count = min(LEARN_FROM, max(1, round(share * len(mass))))
    largest = ops.largest(mass.view(torch.int64), count)
    return to_host(torch.cat([each.rows for each in kernels])[largest])


def _learn(kernels: Tensor, count: int) -> Tensor:
    """As many patterns [count, m], 1 or -1, as fit these kernels [n, m]."""
    largest = float(kernels.abs().max())
    sums = (kernels / (largest or 1.0) * 2**BITS).round()  # integers again
    masses = sums.abs().sum(1)
    patterns = torch.ones_like(sums[:1])
    while len(patterns) < count:
        missed = masses - (sums @ patterns.T).abs().amax(1)
        worst = sums[missed.argmax()]
        patterns = torch.cat([patterns, torch.where(worst < 0, -1.0, 1.0)[None]])
    for _ in range(TURNS):
        fits = sums @ patterns.T
        best = fits.abs().argmax(1, keepdim=True)
        turned = sums * fits.gather(1, best).sign()
        totals = torch.zeros_like(patterns).index_add_(0, best[:, 0], turned)
        patterns = torch.where(totals == 0, patterns, totals.sign())
    return patterns
