"""The add-drop ballot against a simulation in plain Python."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from ddp_compress import CompressionState, Recipe
from ddp_compress.codec import EliasFano
from ddp_compress.exchange import AllGather, BallotBox, RotatingOwner, SharedMask, Union
from ddp_compress.memory import Residual
from ddp_compress.message.arena import Arena
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.layout import Layout
from ddp_compress.message.message import Message
from ddp_compress.message.plan import Plan
from ddp_compress.message.selection import Selection
from ddp_compress.quantize import Values
from ddp_compress.select import AddDrop, TopK

SIZES = [[40, 3, 100], [0, 7], [61, 200, 2]]
LAYOUTS = tuple(
    Layout(tuple(f"{c}.{p}" for p in range(len(sizes))), tuple(sizes))
    for c, sizes in enumerate(SIZES)
)
PARAMS = [size for sizes in SIZES for size in sizes]
NUMEL = sum(PARAMS)


class Rank:
    """One rank's memory and its select, step after step."""

    def __init__(self, select: AddDrop, dtype: torch.dtype = torch.float32, min_numel: int = 0):
        self.select, self.dtype, self.min_numel = select, dtype, min_numel
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.kept = [
            {
                "residual": torch.zeros(layout.numel, dtype=self.wide),
                "vote": torch.zeros(layout.numel, dtype=torch.uint8),
            }
            for layout in LAYOUTS
        ]

    def message(self, flat: Tensor, step: int, density: float, unused: set[int]) -> Message:
        plan = Plan(LAYOUTS, self.select.scope, density, self.min_numel)
        grads = flat.to(self.dtype).split([layout.numel for layout in LAYOUTS])
        flags = [i in unused for i in range(len(PARAMS))]
        chunks = []
        for grad, layout, kept in zip(grads, LAYOUTS, self.kept, strict=True):
            mine, flags = flags[: len(layout.sizes)], flags[len(layout.sizes) :]
            chunks.append(Chunk(grad.clone(), layout, Arena(kept)))
            chunks[-1].unused = mine
        return Message(chunks, plan, step, Residual())

    @property
    def votes(self) -> set[int]:
        return set(torch.cat([kept["vote"] for kept in self.kept]).nonzero().flatten().tolist())

    def commit(self, selection: Selection) -> None:
        flat = torch.cat([kept["vote"] for kept in self.kept])
        writes = selection.writes["vote"]
        assert (writes.positions.diff() > 0).all()
        assert writes.positions.dtype == torch.int32
        assert writes.values.dtype == torch.uint8
        assert (flat[writes.positions.long()] != writes.values).all(), "only changes are written"
        flat[writes.positions.long()] = writes.values
        for kept, part in zip(self.kept, flat.split([x.numel for x in LAYOUTS]), strict=True):
            kept["vote"].copy_(part)


def simulated(
    select: AddDrop, message: Message, top: set[int], votes: set[int], values: list[float]
) -> set[int]:
    """The next ballot by the definition; ties by the first position."""
    ballot = set()
    edges = message.plan.bounds.tolist()
    owners = [
        g for p, g in enumerate(message.groups.tolist()) for _ in range(edges[p], edges[p + 1])
    ]
    for group, k in enumerate(message.plan.ks.tolist()):
        wanted = {i for i in top if owners[i] == group}
        held = {i for i in votes if owners[i] == group}
        most = max(1, math.floor(select.change * k + 0.5)) + max(0, len(wanted) - len(held))
        new = sorted(wanted - held, key=lambda i: (-abs(values[i]), i))[:most]
        old = sorted(held - wanted, key=lambda i: (abs(values[i]), i))
        drops = len(held) + len(new) - len(wanted)
        ballot |= (held | set(new)) - set(old[:drops])
        assert len((held | set(new)) - set(old[:drops])) == len(wanted)
    return ballot


@pytest.mark.parametrize("scope", ["model", "bucket", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("change", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("min_numel", [0, 5])
def test_it_follows_the_definition(scope, dtype, change, min_numel):
    """Over random steps: densities that move, unused parameters, few votes and many ties."""
    generator = torch.Generator().manual_seed(1)
    rank = Rank(AddDrop(0.1, change, scope), dtype, min_numel)
    drift = torch.randn(NUMEL, generator=generator)
    for step in range(30):
        density = 0.1 if step % 7 else 0.3
        unused = {0, 5} if step % 5 == 3 else set()
        drift = drift + 0.3 * torch.randn(NUMEL, generator=generator)
        flat = (drift * 4).round() / 4 * (torch.rand(NUMEL, generator=generator) < 0.9)
        message = rank.message(flat, step, density, unused)
        memory = [{name: t.clone() for name, t in kept.items()} for kept in rank.kept]
        selection = rank.select(message)
        for now, before in zip(rank.kept, memory, strict=True):
            assert all(torch.equal(now[name], before[name]) for name in before), "written too soon"

        top = TopK(density, scope, seed=0)(message).entries.positions.tolist()
        values = message.values_at(torch.arange(NUMEL).int())
        expected = simulated(rank.select, message, set(top), rank.votes, values.tolist())
        assert selection.finite
        assert selection.entries.positions.tolist() == sorted(expected)
        assert selection.entries.positions.dtype == torch.int32
        assert torch.equal(selection.entries.values, values[selection.entries.positions.long()])
        assert (message.plan.counts(selection.entries.positions) <= message.plan.ks).all()
        rank.commit(selection)
        assert rank.votes == expected


def test_few_votes_change_after_the_first_step():
    generator = torch.Generator().manual_seed(2)
    rank = Rank(AddDrop(0.25, 0.1))
    k, sizes = round(0.25 * NUMEL), []
    for step in range(10):
        flat = torch.randn(NUMEL, generator=generator)
        selection = rank.select(rank.message(flat, step, 0.25, set()))
        writes = selection.writes["vote"].values
        sizes.append((int((writes == 1).sum()), int((writes == 0).sum())))
        rank.commit(selection)
        assert len(rank.votes) == k
    assert sizes[0] == (k, 0)
    assert sizes[1:] == [(round(0.1 * k), round(0.1 * k))] * 9


def test_a_ballot_converges_to_the_largest():
    rank = Rank(AddDrop(0.1, 0.2))
    generator = torch.Generator().manual_seed(3)
    first, then = torch.randn(2, NUMEL, generator=generator)
    for step, flat in enumerate([first] + [then] * 5):
        rank.commit(rank.select(rank.message(flat, step, 0.1, set())))
    k = round(0.1 * NUMEL)
    assert rank.votes == set(then.abs().topk(k).indices.tolist())


def test_lost_groups_lose_their_votes():
    """An unused parameter's votes go at once, and count as no change."""
    rank = Rank(AddDrop(0.1, 0.05))
    spike = torch.zeros(NUMEL)
    spike[:40] = torch.arange(1.0, 41)
    rank.commit(rank.select(rank.message(spike, 0, 0.1, set())))
    assert rank.votes == set(range(40))
    rank.commit(rank.select(rank.message(spike + 1, 1, 0.1, {0})))
    assert len(rank.votes) == 41
    assert min(rank.votes) >= 40


def test_nothing_to_vote_for():
    rank = Rank(AddDrop(0.1), min_numel=1000)
    selection = rank.select(rank.message(torch.ones(NUMEL), 0, 0.1, set()))
    assert selection.finite
    assert len(selection.entries) == len(selection.writes["vote"]) == 0


def test_a_bad_gradient_changes_no_vote():
    rank = Rank(AddDrop(0.1))
    flat = torch.ones(NUMEL)
    flat[50] = math.nan
    selection = rank.select(rank.message(flat, 0, 0.1, set()))
    assert not selection.finite
    assert not selection.writes


@pytest.mark.parametrize("change", [0.0, -0.1, 1.1, math.nan])
def test_change_must_be_a_share(change):
    with pytest.raises(ValueError, match=r"change must lie in \(0, 1\], got"):
        AddDrop(0.1, change)


def test_what_it_keeps_is_declared():
    assert AddDrop(0.1).tensors == {"vote": torch.uint8}
    assert TopK(0.1).tensors == {}
    with pytest.raises(ValueError, match="density must lie"):
        AddDrop(2.0)


@pytest.mark.parametrize(
    "exchange",
    [AllGather(), Union(), SharedMask(RotatingOwner()), SharedMask(BallotBox())],
    ids=lambda exchange: repr(exchange)[:30],
)
def test_ballots_are_kept_whatever_the_exchange(exchange):
    parts = Residual(), AddDrop(0.1, 0.2), Values(), EliasFano(), exchange
    state = CompressionState(nn.Linear(20, 10, bias=False), Recipe("mine", *parts))
    votes = []
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        state.reduce({"weight": torch.randn(200, generator=draw)})
        votes.append(state.memory()["vote"]["weight"].bool())
    assert [int(vote.sum()) for vote in votes] == [20, 20, 20]
    for before, after in pairwise(votes):
        assert int((after & ~before).sum()) <= 4, "a fifth of 20 may change"
