"""Rotated quantization: what the quantizer alone promises; the laws are held elsewhere."""

import pytest
import torch
from torch import Tensor

from ddp_compress import recipes
from ddp_compress.exchange import Sharded
from ddp_compress.message.context import Context
from ddp_compress.message.random_key import RandomKey
from ddp_compress.quantize import Rotated

NAMES = ("a", "b")


def roundtrip(quantizer: Rotated, values: Tensor, counts: list[int], step: int = 0) -> Tensor:
    """What another rank decodes, after the checks that hold for all."""
    groups = torch.tensor(counts)
    data = quantizer.encode(values, Context(groups, RandomKey(NAMES, step, rank=1)))
    assert len(data) == quantizer.size(groups)
    found = quantizer.decode(data, Context(groups, RandomKey(NAMES, step, rank=0)))
    assert found.shape == values.shape
    assert found.dtype == torch.float32
    return found


def tails(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count)) ** 3


def error(quantizer: Rotated, values: Tensor, seeds: int = 10) -> float:
    """The normalized error, over steps."""
    counts = [len(values), 0]
    lost = [roundtrip(quantizer, values, counts, step) - values for step in range(seeds)]
    return sum(float((each.norm() / values.norm()) ** 2) for each in lost) / seeds


@pytest.mark.parametrize("transform", ["hadamard", "kashin", "none"])
def test_few_values_are_exact_and_the_rest_nearly_so_at_eight_bits(transform):
    values = tails(2010)
    found = roundtrip(Rotated(8, transform), values, [2000, 10])
    assert torch.equal(found[2000:], values[2000:])
    assert float((found - values).norm() / values.norm()) < (0.05 if transform == "none" else 0.02)


@pytest.mark.parametrize("keep", [1.0, 0.4])
@pytest.mark.parametrize("transform", ["hadamard", "kashin", "none"])
def test_on_average_values_stay(transform, keep):
    """Of 100 steps, within 5 standard errors; over all values, their z-scores are normal."""
    values, quantizer = tails(192), Rotated(2, transform, keep)
    draws = torch.stack([roundtrip(quantizer, values, [128, 64], step) for step in range(100)])
    z = (draws.mean(0) - values) / (draws.std(0) / 10 + 1e-6)
    assert z.abs().max() < 5
    assert abs(float(z.square().mean()) - 1) < 0.5


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_kashin_loses_less_than_hadamard_and_that_less_than_no_transform(bits):
    """In one block of 8192 coefficients each: in smaller ones every transform loses less."""
    values = tails(8192)
    kashin = error(Rotated(bits, "kashin"), values[:7936])
    hadamard, none = (error(Rotated(bits, each), values) for each in ("hadamard", "none"))
    assert kashin < hadamard < none


def test_more_iterations_of_kashin_lose_less():
    once, twice, often = (error(Rotated(2, "kashin", iterations=i), tails(7936)) for i in (1, 2, 8))
    assert often < twice < once


def test_a_share_of_the_coefficients_travels():
    counts = torch.tensor([8192, 8192])
    assert Rotated(4).size(counts) == 2 * (4096 + 8)
    assert Rotated(4, keep=0.25).size(counts) == 2 * (1024 + 8)
    assert Rotated(3, keep=0.25).size(counts) == 2 * (768 + 8)


def test_ranks_share_the_mask_and_the_signs_but_not_the_noise():
    values, counts, quantizer = tails(512), torch.tensor([512, 0]), Rotated(4, keep=0.5)
    one, two = (
        quantizer.encode(values, Context(counts, RandomKey(NAMES, 3, rank))) for rank in (0, 1)
    )
    assert torch.equal(one[:8], two[:8])  # the smallest and the step of the same coefficients
    assert not torch.equal(one, two)
    later = quantizer.encode(values, Context(counts, RandomKey(NAMES, 4, rank=0)))
    reply = quantizer.encode(values, Context(counts, RandomKey(NAMES, 3, rank=0, reply=True)))
    assert not torch.equal(one[:8], later[:8])
    assert not torch.equal(one[:8], reply[:8])


def test_a_share_that_is_fed_back_stands_for_itself_alone():
    values = tails(8192)
    fed_back = roundtrip(Rotated(8, keep=0.5, unbiased=False), values, [8192, 0])
    assert float((fed_back - values).norm() / values.norm()) < 0.8  # 0.71 is left out


@pytest.mark.parametrize("value", [1e38, -1e38])
def test_large_values_are_cut_off(value):
    found = roundtrip(Rotated(8, "none"), torch.full((64,), value), [64, 0])
    assert found.isfinite().all()
    assert found[0].abs() == torch.tensor(1e26)


def test_bytes_that_do_not_fit_are_refused():
    quantizer, context = Rotated(4), Context(torch.tensor([70, 0]), RandomKey(NAMES, 0, 0))
    data = quantizer.encode(tails(70), context)
    for wrong in (data[:-1], torch.cat([data, data[:1]])):
        with pytest.raises(ValueError, match="bytes, expected"):
            quantizer.decode(wrong, context)
    for bad, words in ((torch.nan, "not finite"), (1e37, "farther from 0")):
        wrong = data.clone()
        wrong[24:28] = torch.tensor([bad]).view(torch.uint8)  # behind six exact values
        with pytest.raises(ValueError, match=words):
            quantizer.decode(wrong, context)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 0}, "bits must lie within 1 and 8, got 0"),
        ({"bits": 9}, "bits must lie within 1 and 8, got 9"),
        ({"keep": 0.0}, "keep must lie"),
        ({"transform": "fourier"}, "transform must be one of"),
        ({"iterations": 0}, "iterations must be 1 or more"),
        ({"bits": 2, "error_feedback": True}, "error_feedback takes bits of 3 or more, got 2"),
        ({"exchange": "all_gather", "down": recipes.rotated()}, "takes exchange='sharded'"),
        ({"down": recipes.dgc()}, "dgc keeps momentum, residual"),
        ({"down": recipes.topk(lambda step: 0.1)}, "constant density"),
    ],
)
def test_arguments_outside_their_range(options, words):
    with pytest.raises(ValueError, match=words):
        recipes.rotated(**options)


def test_a_second_residual_is_kept_where_the_way_down_keeps_one():
    for feedback in (False, True):
        down = recipes.rotated(5, error_feedback=feedback)
        kept = {"owner_residual": None} if feedback else {}
        assert Sharded(down).tensors == recipes.rotated(4, down=down).tensors == kept
