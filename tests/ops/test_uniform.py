import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddp_compress import ops
from ddp_compress.ops import reference

native = torch.ops.ddp_compress
both_twins = pytest.mark.parametrize("twin", [native, reference], ids=["native", "reference"])
every_width = pytest.mark.parametrize("bits", range(1, 9))
SIZES = [[], [0], [1], [7, 8, 9], [64, 0, 63, 65], [1000, 3]]


def blocks(sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values with long tails, bounds and salts."""
    generator = torch.Generator().manual_seed(sum(sizes))
    values = torch.randn(sum(sizes), generator=generator) ** 3
    salts = torch.randint(-(2**62), 2**62, (len(sizes),), generator=generator)
    return values, torch.tensor([0, *sizes]).cumsum(0), salts


def check_twins(values, bounds, salts, bits):
    """Encode and decode with both; returns codes, levels and what is decoded."""
    codes, levels = native.uniform_encode(values, bounds, salts, bits)
    expected = reference.uniform_encode(values, bounds, salts, bits)
    assert torch.equal(codes, expected[0])
    torch.testing.assert_close(levels, expected[1], rtol=0, atol=0, equal_nan=True)
    found = native.uniform_decode(codes, levels, bounds, bits)
    decoded = reference.uniform_decode(codes, levels, bounds, bits)
    torch.testing.assert_close(found, decoded, rtol=0, atol=0, equal_nan=True)
    return codes, levels, found


@pytest.mark.parametrize("path", ["wide", "portable"])
@pytest.mark.parametrize("sizes", SIZES, ids=repr)
@every_width
def test_twins_agree(sizes, bits, path, monkeypatch):
    if path == "portable":
        monkeypatch.setenv("DDP_COMPRESS_PORTABLE", "1")
    values, bounds, salts = blocks(sizes)
    _, levels, found = check_twins(values, bounds, salts, bits)
    steps = levels.view(-1, 2)[:, 1].repeat_interleave(bounds.diff())
    assert ((found - values).abs() <= 1.001 * steps).all()


@given(st.lists(st.lists(st.floats(width=32), max_size=20), max_size=5), st.integers(1, 8))
def test_twins_agree_on_any_numbers(segments, bits):
    values = torch.tensor([x for segment in segments for x in segment], dtype=torch.float32)
    bounds = torch.tensor([0, *map(len, segments)]).cumsum(0)
    check_twins(values, bounds, torch.arange(len(segments)), bits)


@pytest.mark.parametrize("sizes", SIZES, ids=repr)
@every_width
def test_the_device_agrees(on_device, sizes, bits):
    values, bounds, salts = blocks(sizes)
    values[len(values) // 2 :: 50] = -0.0
    codes, levels = native.uniform_encode(values, bounds, salts, bits)
    found = on_device("uniform_encode", values, bounds=bounds, salts=salts, bits=bits)
    assert torch.equal(found[0], codes)
    assert torch.equal(found[1], levels)
    decoded = on_device("uniform_decode", codes, levels, bounds=bounds, bits=bits)
    assert torch.equal(decoded, native.uniform_decode(codes, levels, bounds, bits))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_only_the_block_of_what_is_not_finite_has_no_levels(on_device, bad):
    values, bounds, salts = blocks([20, 20])
    values[3] = bad
    codes, levels, _ = check_twins(values, bounds, salts, 3)
    assert levels.isnan().tolist() == [True, True, False, False]
    there = on_device("uniform_encode", values, bounds=bounds, salts=salts, bits=3)
    assert torch.equal(there[0], codes)
    torch.testing.assert_close(there[1], levels, rtol=0, atol=0, equal_nan=True)


@every_width
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -1e-45, 3e38])
def test_equal_values_come_back(bits, value):
    _, _, found = check_twins(torch.full((11,), value), *blocks([11])[1:], bits)
    assert torch.equal(found, torch.full((11,), value))


@every_width
def test_the_mean_of_many_draws_is_the_number(bits):
    """Of 4000 draws, each a block of its own, within 5 standard errors."""
    values = torch.tensor([-1.0, -0.7, -0.1, 0.0, 0.03, 0.5, 2.0])
    bounds = 7 * torch.arange(4001)
    salts = reference.random_words(torch.arange(4000), torch.tensor([bits]))
    codes, levels = native.uniform_encode(values.repeat(4000), bounds, salts, bits)
    draws = native.uniform_decode(codes, levels, bounds, bits).view(4000, 7)
    mean, error = draws.mean(0), draws.std(0) / 4000**0.5
    assert ((mean - values).abs() <= 5 * error + 1e-5).all()


@both_twins
def test_golden_bytes(twin):
    values, bounds = torch.tensor([0.0, 7.0, 1.0, 2.0, 3.0, 6.0, 5.0, 4.0, 7.0]), [0, 9]
    codes, levels = twin.uniform_encode(values, torch.tensor(bounds), torch.tensor([5]), 3)
    assert levels.tolist() == [0.0, 1.0]
    fields = sum(int(value) << 3 * i for i, value in enumerate(values))
    assert bytes(codes.tolist()) == fields.to_bytes(4, "little")


@both_twins
def test_sizes_that_do_not_fit_are_refused(twin):
    values, bounds, salts = blocks([9, 1])
    codes, levels = twin.uniform_encode(values, bounds, salts, 3)
    for bits in (0, 9):
        with pytest.raises(RuntimeError, match=f"bits must lie within 1 and 8, got {bits}"):
            twin.uniform_encode(values, bounds, salts, bits)
        with pytest.raises(RuntimeError, match=f"bits must lie within 1 and 8, got {bits}"):
            twin.uniform_decode(codes, levels, bounds, bits)
    with pytest.raises(RuntimeError, match="codes has 4 elements, expected 5"):
        twin.uniform_decode(codes[:-1], levels, bounds, 3)
    with pytest.raises(RuntimeError, match="levels has 3 elements, expected 4"):
        twin.uniform_decode(codes, levels[:-1], bounds, 3)
    with pytest.raises(RuntimeError, match="values has 9 elements, expected 10"):
        twin.uniform_encode(values[:-1], bounds, salts, 3)


def test_what_it_writes_is_what_its_schema_says():
    values, bounds, salts = blocks([5, 4])
    torch.library.opcheck(
        native.uniform_encode.default, (values, bounds, salts, 3), test_utils="test_schema"
    )
    codes, levels = ops.uniform_encode(values, bounds, salts, 3)
    torch.library.opcheck(
        native.uniform_decode.default, (codes, levels, bounds, 3), test_utils="test_schema"
    )
