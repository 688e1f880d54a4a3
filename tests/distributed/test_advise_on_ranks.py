"""The adviser among real ranks, and what it says where they do not fit together."""

import json

import pytest
import torch
import torch.distributed as dist
from torch import nn

import ddp_compress as dc
from ddp_compress.advise.link import measure
from ddp_compress.advise.ranks import Ranks


def figures(model, **options):
    advice = dc.advise(model, recipes=["sbc", "hgc"], progress=False, **options)
    assert advice.is_measured
    return json.loads(advice.to_json()) | {"seconds": None}  # of this rank alone


def test_every_rank_has_the_same_advice(ranks):
    one, other = ranks.run(2, figures, 200_000)
    assert one == other
    assert one["here"]["ranks"] == 2
    assert [row["name"] for row in one["methods"] if row["is_recipe"]] in (
        ["sbc", "hgc"],
        ["hgc", "sbc"],
    )


class Slow(nn.Module):
    """A model that takes its time, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 20)

    def forward(self, x):
        return {"logits": self.layer(x), "kept": None}


def measured_step():
    advice = dc.advise(Slow(), inputs=[torch.ones(4, 30)], recipes=["topk"], progress=False)
    return advice.workload.step


def test_a_step_is_measured_with_inputs(ranks):
    steps = ranks.run(2, measured_step)
    assert steps[0] == steps[1] > 0


def of_other_sizes():
    with pytest.raises(dc.PeerError) as raised:
        figures(nn.Linear(10, 5 + dist.get_rank()))
    return str(raised.value)


def test_ranks_of_different_sizes_are_told(ranks):
    for said in ranks.run(2, of_other_sizes):
        assert "2 parameters of 55 elements" in said
        assert "2 parameters of 66 elements" in said


def assumed():
    with pytest.raises(ValueError, match="several processes measure their link"):
        figures(1000, link=dc.Link(1e9, 1e-3), ranks=4)


def test_several_processes_assume_nothing(ranks):
    ranks.run(2, assumed)


def the_link():
    return measure(Ranks(None, torch.device("cpu")))


def test_a_link_is_measured_alike(ranks):
    one, other = ranks.run(2, the_link)
    assert one == other
    assert one.rate > 1e6
    assert 0 < one.latency < 1
