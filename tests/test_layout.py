"""Plans: what depends on the density, and what is made once."""

import gc

import pytest
import torch
from torch import nn

from ddp_compress import CompressionState, recipes
from ddp_compress.message.layout import Layout
from ddp_compress.message.plan import Plan, plan_for, tables_for
from ddp_compress.message.shards import Cuts, Shards

LAYOUTS = (Layout(("a", "b", "c"), (600, 2, 0)), Layout(("d",), (90,)))


@pytest.mark.parametrize("scope", ["tensor", "bucket", "model"])
def test_plans_of_all_densities_share_their_tables(scope):
    seen = [plan_for(LAYOUTS, scope, 0.5 * 0.99**step, 3) for step in range(200)]
    shared = tables_for(LAYOUTS, scope, 3)
    for each in (*seen, Plan(LAYOUTS, scope, 0.25, 3)):
        assert each.tables is shared
        assert each.bounds is shared.bounds
        assert each.groups is shared.groups
    assert plan_for(LAYOUTS, scope, seen[-1].density, 3) is seen[-1], "most steps repeat a density"
    assert len({each.digest for each in seen}) == 200
    assert len({each.layout_digest for each in seen}) == 1
    assert {Shards(each, 3).offsets.data_ptr() for each in seen} == {
        Shards(seen[0], 3).offsets.data_ptr()
    }
    sizes = {"tensor": (600, 90), "bucket": (600, 90), "model": (690,)}[scope]
    assert shared.group_sizes == sizes
    for each in seen:
        expected = [max(1, int(each.density * size + 0.5)) for size in sizes]
        assert each.ks.tolist() == expected


def alive() -> tuple[int, int]:
    """Plans and cuts."""
    gc.collect()
    kinds = list(map(type, gc.get_objects()))  # isinstance would wake what torch loads lazily
    return kinds.count(Plan), kinds.count(Cuts)


@pytest.mark.parametrize("exchange", ["all_gather", "sharded"])
def test_a_density_that_changes_at_every_step_leaves_no_plans_behind(exchange):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    recipe = recipes.topk(lambda step: 0.5 * 0.99**step, exchange=exchange)
    state = CompressionState(model, recipe)
    gradients = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    counts = []
    for step in range(200):
        state.reduce(gradients)
        if step in (5, 199):
            counts.append(alive())
    assert counts[0] == counts[1]
    state.close()


def test_a_message_that_is_too_large_is_refused_every_time():
    half = Layout(("a",), (2**30,))
    for _ in range(2):
        with pytest.raises(ValueError, match="a message of 2147483648 elements is too large"):
            plan_for((half, half), "model", 0.1, 0)
