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


class Normed(nn.Module):
    """A model with a buffer that every pass changes, and that fails where it is told to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.layer, self.norm, self.fails = nn.Linear(30, 20), nn.BatchNorm1d(20), fails

    def forward(self, x):
        if self.fails:
            raise KeyError("no such layer")
        return {"logits": self.norm(self.layer(x)), "kept": None}


def measured_step():
    model = Normed()
    model.layer.weight.grad = torch.ones(20, 30)
    advice = dc.advise(model, inputs=torch.ones(4, 30), recipes=["topk"], progress=False)
    assert model.norm.num_batches_tracked == 0
    assert (model.layer.weight.grad == 1).all()
    assert {0 <= each.hidden <= 1 for each in advice.outlooks} == {True}
    return advice.workload.step


def test_a_step_is_measured_with_inputs_and_the_model_stays_as_it_is(ranks):
    steps = ranks.run(2, measured_step)
    assert steps[0] == steps[1] > 0


def failing_model():
    with pytest.raises(dc.PeerError, match=r"rank 1: failed: KeyError: 'no such layer'"):
        figures(Normed(fails=dist.get_rank() == 1), inputs=[torch.ones(4, 30)])


def test_a_model_that_fails_on_one_rank_is_told_to_all(ranks):
    ranks.run(2, failing_model)


def of_two_dtypes():
    model = nn.Sequential(nn.Linear(40, 40).to(torch.bfloat16), nn.Linear(40, 40))
    return [row["name"] for row in figures(model, step=0.001)["methods"]]


def test_a_model_of_two_dtypes(ranks):
    for names in ranks.run(2, of_two_dtypes):
        assert set(names) == {"dense", "fp16", "sbc", "hgc"}


def of_other_steps():
    with pytest.raises(dc.PeerError, match=r"0\.1 s a step") as raised:
        figures(1000, step=0.1 * (1 + dist.get_rank()))
    return str(raised.value)


def test_ranks_with_other_steps_are_told(ranks):
    for said in ranks.run(2, of_other_steps):
        assert "0.2 s a step" in said


def among_nodes():
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("node", "gpu"))
    rows = {row["name"]: row for row in figures(40_000, within=mesh["gpu"])["methods"]}
    return rows["sbc"]["kept"], rows["sbc"]["sent"] > 0


def test_nodes_keep_a_slice_each(ranks):
    assert ranks.run(4, among_nodes) == [(80_000, True)] * 4


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
