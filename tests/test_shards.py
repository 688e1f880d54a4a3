"""Shards: a message cut into ranges, and put together again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import Layout
from ddp_compress.message.plan import Plan
from ddp_compress.message.shards import Shards


@st.composite
def cuts(draw: st.DrawFn) -> Shards:
    """Shards of a few chunks; parameters may be empty, smaller than W, or uncompressed."""
    chunks = draw(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=4), max_size=3))
    layouts = tuple(
        Layout(tuple(f"{c}.{p}" for p in range(len(sizes))), tuple(sizes))
        for c, sizes in enumerate(chunks or [[7]])
    )
    scope = draw(st.sampled_from(["tensor", "bucket", "model"]))
    min_numel = draw(st.sampled_from([0, 5, 100]))
    return Shards(Plan(layouts, scope, 0.3, min_numel), draw(st.integers(1, 6)))


def votable(plan: Plan) -> Tensor:
    """The positions of all but the uncompressed parameters."""
    everything = plan.all_positions
    return torch.arange(plan.numel, dtype=torch.int32) if everything is None else everything


def owned(cut: Shards) -> list[Tensor]:
    """Every rank's positions in the message."""
    places = [torch.arange(plan.numel, dtype=torch.int32) for plan in cut.plans]
    return [cut.widen(Entries(each, each), rank).positions for rank, each in enumerate(places)]


@given(cuts())
def test_every_position_but_the_exact_ones_is_owned_once(cut):
    assert torch.equal(torch.cat(owned(cut)).sort().values, votable(cut.plan))


@given(cuts())
def test_owners_have_equal_parts_of_every_parameter(cut):
    for name, low, high in zip(cut.plan.names, *cut.plan.bounds.unfold(0, 2, 1).T, strict=True):
        counts = [int(((each >= low) & (each < high)).sum()) for each in owned(cut)]
        assert max(counts) - min(counts) <= 1, name


@given(cuts(), st.integers(0, 2**32))
def test_split_and_join_bring_sparse_entries_back(cut, seed):
    generator = torch.Generator().manual_seed(seed)
    positions = votable(cut.plan)
    positions = positions[torch.rand(len(positions), generator=generator) < 0.5]
    entries = Entries(positions, torch.randn(len(positions), generator=generator))
    parts = cut.split(entries)
    for part, plan in zip(parts, cut.plans, strict=True):
        assert part.positions.dtype == torch.int32
        assert (part.positions.diff() > 0).all()
        assert ((part.positions >= 0) & (part.positions < plan.numel)).all()
    joined = cut.join(parts)
    assert all((each.positions.diff() > 0).all() for each in joined)
    order = torch.cat([each.positions for each in joined]).sort()
    assert torch.equal(order.values, positions)
    assert torch.equal(torch.cat([each.values for each in joined])[order.indices], entries.values)


@given(cuts())
def test_split_and_join_bring_dense_entries_back(cut):
    values = torch.arange(cut.plan.numel, dtype=torch.float32)
    parts = cut.split(Entries(None, values))
    assert [len(part) for part in parts] == [plan.numel for plan in cut.plans]
    (joined,) = cut.join(parts)
    assert torch.equal(joined.values, values[votable(cut.plan).long()])
    assert joined.indices is None or torch.equal(joined.indices, votable(cut.plan))


@given(cuts())
def test_a_shard_is_taken_as_it_is_widened(cut):
    flat = torch.arange(cut.plan.numel, dtype=torch.int32)
    chunks = flat.split([layout.numel for layout in cut.plan.layouts])
    for rank, positions in enumerate(owned(cut)):
        assert torch.equal(cut.take(chunks, rank), positions)


@given(cuts())
def test_what_a_rank_owns_does_not_depend_on_the_order_of_parameters(cut):
    def by_name(cut: Shards) -> dict[str, list[int]]:
        return {
            name: [start, *sizes]
            for rank, plan in enumerate(cut.plans)
            for name, start, *sizes in zip(
                (f"{name} on {rank}" for name in plan.names),
                cut.offsets[rank].tolist(),
                plan.bounds.diff().tolist(),
                strict=True,
            )
        }

    layouts = tuple(Layout(x.names[::-1], x.sizes[::-1]) for x in cut.plan.layouts[::-1])
    plan = Plan(layouts, cut.plan.scope, cut.plan.density, cut.plan.min_numel)
    assert by_name(Shards(plan, cut.world_size)) == by_name(cut)


@given(cuts())
def test_shards_may_send_about_what_the_whole_may(cut):
    """Every group of every shard at least one entry, and no more than half an entry too many."""
    total = sum(plan.k for plan in cut.plans)
    groups = sum(len(plan.ks) for plan in cut.plans)
    assert total <= cut.plan.density * len(votable(cut.plan)) + groups


@pytest.mark.parametrize("world_size", [1, 3])
def test_alone_a_rank_owns_everything(world_size):
    cut = Shards(Plan((Layout(("a", "b"), (4, 2)),), "model", 0.5), world_size)
    assert [len(each) for each in owned(cut)] == ([6] if world_size == 1 else [1, 2, 3])
