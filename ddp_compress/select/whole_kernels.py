"""Send whole kernels of convolutions, and single entries where these are worth their bits."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from typing import ClassVar, cast

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_count, check_one_of
from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import SCOPES, Scope
from ddp_compress.message.message import Message
from ddp_compress.message.selection import Selection
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of, to_host
from ddp_compress.ops.reference.whole_kernels import BITS
from ddp_compress.schedules import Schedule, check_density

GAP_BITS = 1.44  # log2(e): of a position among rare ones, beside -log2 of their share
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
        if not message.is_finite():
            nothing = torch.empty(0, dtype=message.memory_dtype, device=message.device)
            return Selection(Entries(nothing.int(), nothing), False)
        ranking = _Ranking(message, self.patterns)
        ranking.learn_prices(*ranking.choose())
        kernels, _, of_kernels, singles = ranking.choose()
        lists = [kernels], [of_kernels], singles, message.values_at(singles)
        return Selection(Entries(*ops.join_kernels(*lists, *message.plan.kernels.tables)), True)


class _Ranking:
    """All entries of a message, by what they carry for their bits."""

    def __init__(self, message: Message, patterns: int) -> None:
        self._plan = plan = message.plan
        self._given = message.sums(), *plan.kernels.tables, message.groups, plan.ks
        # Which parameters have kernels that their group can hold.
        room = torch.nn.functional.pad(plan.ks, (0, 1))[message.groups]  # 0 where in none
        self._fitting = (plan.kernels.numels > 1) & (plan.kernels.numels <= room)
        share = max(plan.k, 1) / max(plan.numel, 1)
        self._patterns = [self._learn(m, patterns, share) for m in self._sizes()]
        gap = GAP_BITS - log2(share)
        self._gaps = [gap] * len(room)  # of a position, by parameter
        self._single = [gap + 1.0] * len(room)
        self._signs = {
            m: [log2(2 * patterns)] * (2 * patterns) + [float(m)] for m in plan.kernels.sizes
        }
        self._signs[1] = [1.0] * (2 * patterns + 1)  # no kernel is one element: any price will do

    def _sizes(self) -> list[int]:
        """Those of the kernels that may be sent."""
        return [m for m in self._plan.kernels.sizes if bool(self._of_size(m).any())]

    def _of_size(self, m: int) -> Tensor:
        """Which parameters have kernels of a size that may be sent: [P] bool."""
        return self._fitting & (self._plan.kernels.numels == m)

    def _learn(self, m: int, count: int, share: float) -> Tensor:
        """Patterns for kernels of a size, [count, m]."""
        there = int(self._plan.kernels.counts[self._of_size(m)].sum())
        some = min(LEARN_FROM, max(1, round(share * there)))
        return _learn(to_host(ops.largest_kernels(*self._given, m, some)).double(), count)

    def choose(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What ranks first at the present prices, see `reference.rank_kernels`."""
        numels = self._plan.kernels.numels.tolist()
        prices = [
            [gap + signs for signs in self._signs[m]]
            for gap, m in zip(self._gaps, numels, strict=True)
        ]
        of_kernels = host.tensor(prices, dtype=torch.float64)
        of_singles = host.tensor(self._single, dtype=torch.float64)
        return ops.rank_kernels(*self._given, self._patterns, of_kernels, of_singles)

    def learn_prices(self, kernels: Tensor, ways: Tensor, _: Tensor, singles: Tensor) -> None:
        """Set prices to what these cost."""
        plan = self._plan
        taken = {m: host.zeros(len(each), dtype=torch.float32) for m, each in self._signs.items()}
        sent, alone = _within(kernels, plan.kernels.starts), _within(singles, plan.bounds)
        numels, sizes = plan.kernels.numels.tolist(), plan.bounds.diff().tolist()
        for p, of_parameter in enumerate(to_host(ways).split(sent)):
            m, n = numels[p], sizes[p]
            self._single[p] = 1.0 + _gap(alone[p], n)
            self._gaps[p] = _gap(sent[p], n // m)
            taken[m] += torch.bincount(of_parameter, minlength=len(taken[m]))
        for m, counts in taken.items():
            shares = (counts + 1) / (counts.sum() + len(counts))
            self._signs[m] = [-log2(share) for share in shares.tolist()]
            self._signs[m][-1] += m


def _within(positions: Tensor, bounds: Tensor) -> list[int]:
    """How many of these, ascending, lie between each two bounds."""
    edges = to_device_of(bounds, positions).to(positions.dtype)
    return cast(list[int], to_host(torch.searchsorted(positions, edges).diff()).tolist())


def _gap(count: int, n: int) -> float:
    """The bits of one of ``count`` positions among n."""
    return GAP_BITS + log2((n + 1) / (count + 1))


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
