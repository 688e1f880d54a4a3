"""Scaled gradients: memory keeps unscaled units through every change of the scale."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from ddp_compress import CompressionState, recipes
from ddp_compress.message.layout import Layout
from tests.table import Row, every_row
from tests.test_laws import SIZES, assert_same, kept, random_grads, state_of

LAYOUT = Layout(tuple(SIZES), tuple(SIZES.values()))
SCALES = [1024.0, 2048.0, 0.5, 2.0**20, 1.0, 2.0**-7]


def push(state: CompressionState, flat: Tensor, scale: float | None) -> Tensor:
    factor = None if scale is None else torch.tensor(scale)
    return state.push(flat.clone(), LAYOUT, last=True, scale=factor).wait()


def flat_grads(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.cat(list(random_grads(seed, dtype).values()))


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_changing_scale_changes_nothing(row, dtype):
    """Powers of two round nothing; the fourth step overflows."""
    scaled, plain = state_of(row, dtype), state_of(row, dtype)
    for step, scale in enumerate(SCALES):
        grads = flat_grads(step, dtype)
        if step == 3:
            grads[5] = math.inf
        expected = push(plain, grads, None)
        found = push(scaled, grads * scale, scale)
        assert torch.equal(found.isnan(), expected.isnan())
        if step != 3:
            assert torch.equal(found, expected * scale)
        for slot in row.recipe.tensors:
            assert_same(kept(scaled, slot), kept(plain, slot))
    assert scaled.step == plain.step == len(SCALES) - 1


def test_a_scale_that_is_no_power_of_two_rounds():
    row = Row(recipes.topk(0.1))
    scaled, plain = state_of(row), state_of(row)
    for step, scale in enumerate([1000.0, 1500.0, 750.0, 33.3]):
        grads = flat_grads(step)
        expected = push(plain, grads, None)
        torch.testing.assert_close(push(scaled, grads * scale, scale), expected * scale)
        assert not torch.equal(kept(scaled)["a"], kept(plain)["a"])
        torch.testing.assert_close(kept(scaled), kept(plain))


@pytest.mark.parametrize(
    "recipe",
    [recipes.topk(1.0), recipes.topk(1.0, exchange="sharded"), recipes.majority_vote(1.0)],
    ids=["topk", "sharded", "vote"],
)
def test_what_would_overflow_when_scaled_stays(recipe):
    """A large residual, from when the scale was small, times a large scale."""
    large, scale = torch.tensor(2.0**110), torch.tensor(2.0**20)
    state = CompressionState(torch.nn.Linear(2, 1, bias=False), recipe)
    saved = state.state_dict()
    saved |= {
        "tensors": {slot: {"weight": torch.zeros(2)} for slot in recipe.tensors},
        "checksum": None,
    }
    saved["tensors"]["residual"]["weight"] += torch.stack([large, torch.tensor(1.0)])
    state.load_state_dict(saved)
    layout = Layout(("weight",), (2,))
    sent = state.push(torch.zeros(2), layout, last=True, scale=scale).wait()
    assert sent.isfinite().all()
    rest = state.state_dict()["tensors"]["residual"]["weight"]
    torch.testing.assert_close(rest[0] + sent[0] / scale, large)


def test_a_half_precision_gradient_cannot_be_unscaled():
    state = state_of(Row(recipes.topk(0.1)), torch.float16)
    with pytest.raises(RuntimeError, match=r"gradient is torch.float16.*value_dtype=torch.float16"):
        push(state, flat_grads(0, torch.float16), 1024.0)
    assert state.step == 0


def test_a_disabled_scaler_is_no_matter():
    state = state_of(Row(recipes.topk(0.1)))
    assert state.loss_scale(torch.device("cpu")) is None
    state.use_scaler(torch.amp.GradScaler("cpu", enabled=False))
    assert state.loss_scale(torch.device("cpu")) is None


def test_the_scale_is_read_anew_and_kept():
    """Before the scaler's first use it is the initial one; what was read does not change."""
    state = state_of(Row(recipes.topk(0.1)))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    state.use_scaler(scaler)
    before = state.loss_scale(torch.device("cpu"))
    scaler.update(new_scale=32.0)
    after = state.loss_scale(torch.device("cpu"))
    assert before is not None
    assert after is not None
    assert (before.item(), after.item()) == (64.0, 32.0)


@pytest.mark.parametrize("scaler", [None, 1024.0, torch.amp.GradScaler])
def test_only_a_grad_scaler_is_taken(scaler):
    state = state_of(Row(recipes.topk(0.1)))
    with pytest.raises(TypeError, match=r"scaler must be a torch\.amp\.GradScaler, got"):
        state.use_scaler(scaler)


def test_a_scaler_is_told_of_before_the_first_step():
    """What is kept by then may be in units of any scale."""
    scaler = torch.amp.GradScaler("cpu")
    late, loaded = (CompressionState(nn.Linear(4, 2), recipes.topk(0.5)) for _ in range(2))
    late.reduce({"weight": torch.ones(8)})
    late.use_scaler(torch.amp.GradScaler("cpu", enabled=False))
    fresh = late.state_dict()
    with pytest.raises(RuntimeError, match="called after steps without it"):
        late.use_scaler(scaler)
    for state in (late, loaded):
        state.load_state_dict(fresh)
        state.use_scaler(scaler)


def test_a_copy_says_that_it_must_be_told_of_its_scaler_again():
    state = CompressionState(nn.Linear(4, 2), recipes.topk(0.5))
    copy.deepcopy(state)  # knew of none, and warns of none
    state.use_scaler(torch.amp.GradScaler("cpu"))
    state.reduce({"weight": torch.ones(8)})
    with pytest.warns(UserWarning, match="call use_scaler again"):
        twin = copy.deepcopy(state)
    twin.use_scaler(torch.amp.GradScaler("cpu"))
