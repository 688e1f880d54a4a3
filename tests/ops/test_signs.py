import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_compress import ops
from ddp_compress.ops import reference

native = torch.ops.ddp_compress
both_twins = pytest.mark.parametrize("twin", [native, reference], ids=["native", "reference"])
on_a_gpu = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.needs_cuda)], indirect=True
)
# `on_device` keeps nothing from one example to the next.
on_examples = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def bounds_of(sizes) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def check_twins(values, bounds, block):
    """Encode and decode with both; returns what is decoded."""
    bits, scales = native.sign_encode(values, bounds, block)
    expected_bits, expected_scales = reference.sign_encode(values, bounds, block)
    assert bits.dtype == expected_bits.dtype == torch.uint8
    assert scales.dtype == expected_scales.dtype == torch.float32
    assert torch.equal(bits, expected_bits)
    torch.testing.assert_close(scales, expected_scales, rtol=0, atol=0, equal_nan=True)
    found = native.sign_decode(bits, scales, bounds, block)
    expected = reference.sign_decode(bits, scales, bounds, block)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit()[~found.isnan()], values.signbit()[~found.isnan()])
    return found


@every_dtype
@pytest.mark.parametrize("block", [8, 24, 64, 4096])
@pytest.mark.parametrize("sizes", [[], [0], [1], [8], [9, 0, 1, 3000, 64], [0, 0, 7, 0]])
def test_twins_agree(dtype, block, sizes):
    generator = torch.Generator().manual_seed(block)
    check_twins(torch.randn(sum(sizes), generator=generator, dtype=dtype), bounds_of(sizes), block)


@given(
    st.lists(st.lists(st.floats(width=32), max_size=20), max_size=5),
    st.sampled_from([8, 16]),
)
def test_twins_agree_on_any_numbers(segments, block):
    values = torch.tensor([x for segment in segments for x in segment], dtype=torch.float32)
    check_twins(values, bounds_of(map(len, segments)), block)


@every_dtype
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 3.0, -1e-38, -3e38])
def test_equal_magnitudes_come_back(value, dtype):
    values = torch.full((21,), value, dtype=dtype)
    values[::3] *= -1
    assert torch.equal(check_twins(values, bounds_of([5, 16]), 8), values.float())


@pytest.mark.parametrize("value", [1e300, -1e-300])
def test_twins_agree_beyond_the_range_of_fp32(value):
    check_twins(torch.full((3,), value, dtype=torch.float64), bounds_of([3]), 8)


@every_dtype
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_only_the_block_of_what_is_not_finite_has_no_scale(bad, dtype):
    values = torch.ones(24, dtype=dtype)
    values[9] = bad
    found = check_twins(values, bounds_of([24]), 8)
    assert found.isnan().tolist() == 8 * [False] + 8 * [True] + 8 * [False]


def test_a_scale_is_the_mean_magnitude():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    _, scales = native.sign_encode(values, bounds_of([600, 400]), 256)
    parts = [*values[:600].split(256), *values[600:].split(256)]
    expected = torch.stack([part.abs().double().mean() for part in parts])
    torch.testing.assert_close(scales.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(scales, native.segment_means(values.abs(), torch.tensor([*map(len, parts)])))


def assert_device_agrees(on_device, values, bounds, block) -> None:
    """Both ways, decoding also with scales and bits that no encoder writes."""
    bits, scales = native.sign_encode(values, bounds, block)
    found_bits, found_scales = on_device("sign_encode", values, bounds=bounds, block=block)
    assert found_bits.dtype == torch.uint8
    assert found_scales.dtype == torch.float32
    assert torch.equal(found_bits, bits)
    torch.testing.assert_close(found_scales, scales, rtol=0, atol=0, equal_nan=True)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, scales.shape, generator=generator).int()
    noise = torch.randint(256, bits.shape, generator=generator, dtype=torch.uint8)
    for data in ((bits, scales), (noise, words.view(torch.float32))):
        expected = native.sign_decode(*data, bounds, block)
        found = on_device("sign_decode", *data, bounds=bounds, block=block)
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@every_dtype
@pytest.mark.parametrize(
    ("block", "sizes"),
    [
        (8, []),
        (8, [0]),
        (8, [1]),
        (8, [9, 0, 1, 300, 64]),
        (24, [0, 0, 7, 0, 200]),
        (64, [3000, 8, 0, 63, 64, 65]),
        (1016, [5000, 0, 1]),
        (1024, [0, 1023, 1024, 1025, 0, 20_000, 3]),
        (1032, [0, 1031, 1032, 1033, 0, 5000, 3]),
        (2048, [2047, 2049, 10_000, 0]),
        (2**62, [50, 0, 3000, 1024, 2049]),
        (2**63 - 8, [5]),
        (1024, [3] * 300),
    ],
)
def test_the_device_agrees(on_device, dtype, block, sizes):
    generator = torch.Generator().manual_seed(len(sizes))
    values = torch.randn(sum(sizes), generator=generator, dtype=dtype)
    for i, number in enumerate((-0.0, torch.nan, -torch.inf, 1e-45, -1e-39)):
        values[i * 700 :: 4001] = number
    assert_device_agrees(on_device, values, bounds_of(sizes), block)


@on_examples
@given(st.lists(st.lists(st.floats(width=32), max_size=20), max_size=5), st.sampled_from([8, 16]))
def test_the_device_agrees_on_any_numbers(on_device, segments, block):
    values = torch.tensor([x for segment in segments for x in segment], dtype=torch.float32)
    assert_device_agrees(on_device, values, bounds_of(map(len, segments)), block)


@on_a_gpu
@every_dtype
@pytest.mark.parametrize("block", [64, 1024, 4096, 2**40])
@pytest.mark.parametrize("sizes", [[10**7], [10**6 + 1, 0, *[1001] * 2000, 3 * 10**6]])
def test_the_gpu_agrees_on_large_tensors(on_device, dtype, block, sizes):
    values = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert_device_agrees(on_device, values, bounds_of(sizes), block)


@both_twins
def test_golden_bytes(twin):
    values = torch.tensor([-1.0, 1, 1, -1, 1, 1, 1, -1, -3, 5, -0.0, 7, -8])
    bits, scales = twin.sign_encode(values, bounds_of([0, 12, 1]), 8)
    assert bits.tolist() == [0b10001001, 0b0101, 0b1]
    assert scales.tolist() == [1.0, 3.75, 8.0]


@both_twins
def test_sizes_that_do_not_fit_are_refused(twin):
    values, bounds = torch.ones(10), bounds_of([9, 1])
    bits, scales = twin.sign_encode(values, bounds, 8)
    for block in (0, -8, 12):
        with pytest.raises(
            RuntimeError, match=f"block must be a positive multiple of 8, got {block}"
        ):
            twin.sign_encode(values, bounds, block)
        with pytest.raises(
            RuntimeError, match=f"block must be a positive multiple of 8, got {block}"
        ):
            twin.sign_decode(bits, scales, bounds, block)
    for wrong in ([], [1, 10], [0, 11, 10]):
        with pytest.raises(RuntimeError, match="bounds must ascend from 0"):
            twin.sign_encode(values, torch.tensor(wrong, dtype=torch.int64), 8)
    with pytest.raises(
        RuntimeError, match="values has 9 elements, expected the last of bounds, 10"
    ):
        twin.sign_encode(values[:9], bounds, 8)
    with pytest.raises(RuntimeError, match="bits has 2 bytes, expected 3"):
        twin.sign_decode(bits[:2], scales, bounds, 8)
    with pytest.raises(RuntimeError, match="scales has 4 entries, expected 3"):
        twin.sign_decode(bits, torch.ones(4), bounds, 8)


def test_other_types_are_refused():
    with pytest.raises(RuntimeError, match="values has dtype"):
        native.sign_encode(torch.ones(8, dtype=torch.int32), bounds_of([8]), 8)


def test_what_it_writes_is_what_its_schema_says():
    values, bounds = torch.tensor([1.0, -2.0, -8.0]), bounds_of([2, 1])
    torch.library.opcheck(native.sign_encode.default, (values, bounds, 8), test_utils="test_schema")
    bits, scales = ops.sign_encode(values, bounds, 8)
    torch.library.opcheck(
        native.sign_decode.default, (bits, scales, bounds, 8), test_utils="test_schema"
    )
