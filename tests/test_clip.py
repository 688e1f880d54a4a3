"""DGC's local clipping: on one rank, where every number is in sight."""

import math

import pytest
import torch

from ddp_compress import CompressionState, recipes
from tests.table import Row
from tests.test_laws import Model, assert_same, in_pieces, kept, random_grads, state_of

CLIP = 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_no_parameter_has_a_larger_norm_and_none_turns(dtype):
    grads = random_grads(0, dtype)
    grads["b"] /= 128
    sent = state_of(Row(recipes.dgc(1.0, 0.0, clip=CLIP)), dtype).reduce(grads)
    for name, grad in grads.items():
        factor = min(1.0, CLIP / max(1e-9, grad.double().norm().item()))
        torch.testing.assert_close(sent[name], (grad.double() * factor).to(dtype))
    assert torch.equal(sent["b"], grads["b"])  # small enough: every bit stays
    assert sent["a"].double().norm() == pytest.approx(CLIP, rel=max(1e-6, torch.finfo(dtype).eps))


def test_momentum_and_residual_are_of_clipped_gradients():
    clipping = state_of(Row(recipes.dgc(0.1, 0.9, clip=CLIP)))
    plain = state_of(Row(recipes.dgc(0.1, 0.9)))
    for step in range(4):
        grads = random_grads(step)
        clipped = {n: g * (CLIP / g.double().norm()).clamp(max=1.0) for n, g in grads.items()}
        assert_same(clipping.reduce(grads), plain.reduce(clipped))
    for slot in ("residual", "momentum"):
        assert_same(kept(clipping, slot), kept(plain, slot))


def test_buckets_change_nothing():
    row = Row(recipes.dgc(0.1, clip=CLIP))
    whole, pieces = state_of(row), CompressionState(Model(), row.recipe, flush_bytes=1)
    for step in range(3):
        grads = random_grads(step)
        assert_same(in_pieces(pieces, grads), whole.reduce(grads))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_non_finite_gradient_is_not_clipped_into_a_finite_one(bad):
    state = state_of(Row(recipes.dgc(0.1, clip=CLIP)))
    state.reduce(random_grads(0))
    before = state.state_dict()["tensors"]
    grads = random_grads(1)
    grads["a"][3] = bad
    assert all(tensor.isnan().all() for tensor in state.reduce(grads).values())
    for slot, tensors in state.state_dict()["tensors"].items():
        assert_same(tensors, before[slot])


def test_a_huge_gradient_keeps_its_direction():
    """Its squares overflow fp32."""
    sent = state_of(Row(recipes.dgc(1.0, clip=CLIP))).reduce({"a": torch.full((600,), 1e30)})["a"]
    torch.testing.assert_close(sent, torch.full((600,), CLIP / math.sqrt(600)))


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan])
def test_clip_outside_its_range(clip):
    with pytest.raises(ValueError, match="clip must be a finite number above 0 or None, got"):
        recipes.dgc(clip=clip)


@pytest.mark.parametrize("clip", [True, "1"])
def test_clip_of_another_type(clip):
    with pytest.raises(TypeError, match="clip must be a finite number above 0 or None, got"):
        recipes.dgc(clip=clip)
