"""Change the previous ballot in a few positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_int
from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import Scope
from ddp_compress.message.message import Message
from ddp_compress.message.plan import entry_count
from ddp_compress.message.selection import Selection
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of
from ddp_compress.schedules import Schedule, check_density
from ddp_compress.select.top_k import TopK


@dataclass(frozen=True)
class AddDrop:
    """The entries of the previous ballot, but for a few that move towards the largest.

    Of the K largest entries, those that the previous ballot lacks are added, the largest first, at
    most ``max(1, round(change * K))``; for each the smallest entry that is not among the K largest
    is dropped. So a ballot is as long as the list of the K largest, and costs few bits beside the
    previous one. An empty or short ballot is filled up at once. Parameters that cannot be voted
    for, unused or uncompressed ones, lose their votes. With another scope than ``"model"`` all this
    holds in every group by itself.

    Args:
        density: share of the elements, in (0, 1], or a schedule of it.
        change: share of the ballot that may change in a step, in (0, 1].
        scope: what one selection runs over, see `TopK`.
        seed: of the hash that breaks ties, see `TopK`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Ozfatura et al., Distributed Sparse SGD with Majority Voting (2020), §3, Alg. 2.

    Example:
        >>> AddDrop(0.01)
        AddDrop(density=0.01, change=0.1, scope='model', seed=0)
    """

    density: float | Schedule
    change: float = 0.1
    scope: Scope = "model"
    seed: int = 0

    sends_all: ClassVar[bool] = False
    # 1 where this rank voted at the last step, else 0.
    tensors: ClassVar[Mapping[str, torch.dtype | None]] = {"vote": torch.uint8}

    def __post_init__(self) -> None:
        check_density(self.change, "change")
        check_int("seed", self.seed)
        _ = self._top_k  # which checks the rest

    @property
    def _top_k(self) -> TopK:
        return TopK(self.density, self.scope, self.seed)

    def __call__(self, message: Message) -> Selection:
        """Change the previous ballot; the votes are written when the step commits."""
        largest = self._top_k(message)
        if not largest.finite:
            return largest
        # From here on, a tensor [U] says something of every position on one of the two lists.
        plan = message.plan
        positions, lists = ops.tally([largest.entries.positions, _voted(message)])
        values = message.values_at(positions)
        held, allowed = message.kept_at("vote", positions).bool(), _allowed(message, positions)
        ballot = held & allowed

        new = (~held).nonzero().flatten()
        old = (ballot & (lists == 1)).nonzero().flatten()
        news, olds = plan.counts(positions[new]), plan.counts(positions[old])  # [G]
        changes = [entry_count(self.change, k) for k in plan.ks.tolist()]
        limits = host.tensor(changes, dtype=torch.int64)
        # What one list is longer than the other comes or goes at once.
        adds = news.minimum(limits + (news - olds).clamp(min=0))
        drops = olds - (news - adds)
        magnitudes = values.abs().double().view(torch.int64)  # the bits order alike
        ballot[_largest_of_each(magnitudes, new, news, adds)] = True
        ballot[_largest_of_each(-magnitudes, old, olds, drops)] = False

        changed = (ballot != held).nonzero().flatten()
        writes = Entries(positions[changed], ballot[changed].to(torch.uint8))
        chosen = ballot.nonzero().flatten()
        return Selection(Entries(positions[chosen], values[chosen]), True, {"vote": writes})


def _voted(message: Message) -> Tensor:
    """The positions of the previous ballot, [V] int32, ascending."""
    parts = [
        _set(chunk.kept["vote"]) + start
        for start, chunk in zip(message.plan.starts, message.chunks, strict=True)
    ]
    return torch.cat(parts).int()


def _set(flags: Tensor) -> Tensor:
    """Where flags [N], uint8, are not zero: [V] int64. Few are, so it looks at eight at once."""
    whole = len(flags) // 8 * 8
    words = flags[:whole].view(torch.int64)
    some = words.nonzero().flatten()
    hits = words[some].view(torch.uint8).nonzero().flatten()
    rest = flags[whole:].nonzero().flatten() + whole
    return torch.cat([(some[hits >> 3] << 3) + (hits & 7), rest])


def _allowed(message: Message, positions: Tensor) -> Tensor:
    """Whether each of the ascending positions may be voted for: [U] bool."""
    edges = torch.searchsorted(positions, to_device_of(message.plan.bounds, positions))
    return to_device_of(message.groups >= 0, positions).repeat_interleave(edges.diff())


def _largest_of_each(keys: Tensor, places: Tensor, counts: Tensor, takes: Tensor) -> Tensor:
    """The places with the largest keys of every group; of equals the first.

    Args:
        keys: [U], int64.
        places: indices into ``keys``, group after group.
        counts: [G], int64, how many places every group has.
        takes: [G], int64, how many to take of each.

    Returns:
        [sum(takes)], int64, some of ``places``.
    """
    parts = zip(places.split(counts.tolist()), takes.tolist(), strict=True)
    taken = [part[ops.largest(keys[part], take)] for part, take in parts]
    return torch.cat([places[:0], *taken])
