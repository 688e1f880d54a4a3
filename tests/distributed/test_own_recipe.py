"""docs/own_recipe.md: parts written outside of the package are as good as its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddp_compress import CompressionState
from ddp_compress.exchange import AllGather, RotatingOwner, Sharded, SharedMask, Union
from ddp_compress.memory import MomentumCorrection, NoMemory, Residual
from ddp_compress.message import Context
from tests.distributed.harness import Ranks
from tests.readme import block

CODE = block("docs/own_recipe.md", "A recipe of your own", "python")
EXCHANGES = [AllGather(), Sharded(), Union(), SharedMask(RotatingOwner())]


def page() -> dict[str, Any]:
    """What the page's lines define."""
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(CODE, "docs/own_recipe.md", "exec"), names)
    return names


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 4))


def gradients(step: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {n: torch.randn(p.shape, generator=draw) for n, p in model().named_parameters()}


def test_the_page_takes_fewer_than_40_lines():
    assert len(CODE.splitlines()) < 40


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("memory", [Residual(), MomentumCorrection(0.5)])
@pytest.mark.parametrize("min_numel", [0, 35])
def test_law_1_holds(exchange, memory, min_numel):
    recipe = replace(page()["random_int8"], exchange=exchange, memory=memory)
    state = CompressionState(model(), recipe, min_numel=min_numel)
    given, sent = gradients(0), state.reduce(gradients(0))
    kept = state.memory()
    for name, grad in given.items():
        parts = [sent[name].flatten(), *(kept[slot][name] for slot in kept if "residual" in slot)]
        torch.testing.assert_close(sum(parts), grad.flatten())
    if min_numel:
        assert torch.equal(sent["0.bias"], given["0.bias"]), "it is uncompressed"
    assert 0 < sum(int(mean.count_nonzero()) for mean in sent.values()) < 200


def test_law_4_a_resumed_run_goes_on():
    recipe = page()["random_int8"]
    state, resumed = CompressionState(model(), recipe), CompressionState(model(), recipe)
    state.reduce(gradients(0))
    resumed.load_state_dict(state.state_dict())
    ours, theirs = state.reduce(gradients(1)), resumed.reduce(gradients(1))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_law_8_a_poisoned_step_never_was():
    state = CompressionState(model(), page()["random_int8"])
    state.reduce(gradients(0))
    before, bad = state.memory(), gradients(1)
    bad["0.weight"][3, 3] = torch.inf
    assert all(mean.isnan().all() for mean in state.reduce(bad).values())
    after = state.memory()["residual"]
    assert all(torch.equal(after[name], kept) for name, kept in before["residual"].items())


def test_what_a_memory_would_lose_is_refused():
    with pytest.raises(ValueError, match=r"select=RandomK\(.*\) leaves entries behind"):
        replace(page()["random_int8"], memory=NoMemory())


def means_of_three_steps() -> list[Tensor]:
    state, rank = CompressionState(model(), page()["random_int8"]), torch.distributed.get_rank()
    steps = [state.reduce(gradients(2 * number + rank)).values() for number in range(3)]
    return [torch.cat([mean.flatten() for mean in means]) for means in steps]


def test_law_2_ranks_have_the_same_means(ranks: Ranks):
    for one, two in zip(*ranks.run(2, means_of_three_steps), strict=True):
        assert torch.equal(one, two)
        assert one.count_nonzero()


def test_bytes_that_do_not_fit_are_told():
    data, context = torch.zeros(3, dtype=torch.uint8), Context(torch.tensor([2]))
    with pytest.raises(ValueError, match="int8: got 3 bytes, expected 6"):
        page()["Int8"]().decode(data, context)


@pytest.mark.parametrize("scale", [torch.nan, torch.inf, 3e38])
def test_no_bytes_are_decoded_to_numbers_that_are_not_finite(scale):
    data = torch.cat([torch.tensor([scale]).view(torch.uint8), torch.tensor([2, 255]).byte()])
    assert page()["Int8"]().decode(data, Context(torch.tensor([2]))).isfinite().all()
