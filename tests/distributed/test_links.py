"""What `bench/links.py` compares with, and what it makes of a method's words."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from links_figures import Count, Sample, summarize
from links_levels import Levels, dense_hook
from links_methods import DENSE, DENSE_WITHIN, NO_EXCHANGE, Method, methods


def gradients_of_two_levels() -> dict[str, torch.Tensor]:
    """Of whole numbers, whose sum has no rounding: rank + 1 times the input."""
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    ddp = DistributedDataParallel(model, bucket_cap_mb=1e-6)  # one for each, the last of one number
    ddp.register_comm_hook(Levels(ranks_per_host=2), dense_hook)
    for _ in range(3):  # the first of them in one bucket
        model.zero_grad()
        ddp(torch.arange(5.0) * (dist.get_rank() + 1)).sum().backward()
    assert len(ddp._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(",")) == 4
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_dense_all_reduce_of_two_levels_is_the_mean(ranks):
    inputs, mean = torch.arange(5.0), 2.5
    expected = {
        "0.weight": (mean * inputs).repeat(3, 1),
        "0.bias": torch.ones(3),
        "1.weight": torch.full((1, 3), mean * 10 + 1),
        "1.bias": torch.ones(1),
    }
    for found in ranks.run(4, gradients_of_two_levels):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_words_of_attach_are_none_of_the_recipe():
    dense, free, within, recipe = methods(["dense,within=node", "sbc,within=node"], [0.01])
    assert (dense, free, within) == (DENSE, NO_EXCHANGE, DENSE_WITHIN)
    assert not within.is_recipe
    assert recipe == Method("sbc", (("within", "node"), ("density", 0.01)))
    assert recipe.of_attach == {"within": "node"}
    assert recipe.recipe().select.density == 0.01


def test_what_is_no_method_is_refused_by_name():
    with pytest.raises(ValueError, match=r"expected dense,within=node, .*fp16, .*; got 'dense'"):
        list(methods(["dense,within=host"], [0.01]))


def test_processor_time_is_of_the_mean_rank_above_no_exchange():
    dense, free = ([Sample(0, 0, cpu_s, Count())] for cpu_s in (5.0, 1.0))
    other_dense, other_free = ([Sample(0, 0, cpu_s, Count())] for cpu_s in (8.0, 2.0))
    gathered = [([dense, free], dict[str, int]()), ([other_dense, other_free], {})]
    rows = summarize([DENSE, NO_EXCHANGE], gathered)["rows"]
    assert [row["cpu_s"] for row in rows] == [6.5 - 1.5, 0]
