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


# --------------------------------------------------------------------- what ranks send, added up


def sent(sizes, block, ranks=3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What so many ranks send of segments of these sizes."""
    generator = torch.Generator().manual_seed(len(sizes))
    values = torch.randn(ranks, sum(sizes), generator=generator)
    each = [native.sign_encode(mine, bounds_of(sizes), block) for mine in values]
    return [bits for bits, _ in each], [scales for _, scales in each]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("afresh", [False, True])
@pytest.mark.parametrize(
    ("block", "sizes"), [(8, []), (8, [0]), (24, [9, 0, 1, 300, 64]), (20_008, [5, 20_003, 8])]
)
def test_signs_are_added_as_if_decoded(dtype, afresh, block, sizes, monkeypatch):
    """Rank after rank, wherever the result begins; nothing beside it is touched."""
    bits, scales = sent(sizes, block)
    generator = torch.Generator().manual_seed(1)
    around = torch.randn(sum(sizes) + 8, generator=generator).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    total = around[3:-5].to(wide) * (0 if afresh else 1)
    for signs, means in zip(bits, scales, strict=True):
        decoded = reference.sign_decode(signs, means, bounds_of(sizes), block)
        total = total + decoded.to(wide) * torch.tensor(1 / 3, dtype=wide)
    expected = torch.cat([around[:3], total.to(dtype), around[-5:]])
    for twin, portable in ((native, False), (native, True), (reference, False)):
        if portable:
            monkeypatch.setenv("DDP_COMPRESS_PORTABLE", "1")
        found = around.clone()
        twin.sign_add(found[3:-5], bits, scales, bounds_of(sizes), block, 1 / 3, afresh)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("portable", [False, True])
def test_signs_are_encoded_alike_whatever_the_processor(portable, monkeypatch):
    """Also at places where no wide register begins."""
    values = torch.randn(5003, generator=torch.Generator().manual_seed(0))[2:]
    expected = reference.sign_encode(values, bounds_of([4000, 1001]), 1024)
    if portable:
        monkeypatch.setenv("DDP_COMPRESS_PORTABLE", "1")
    bits, scales = native.sign_encode(values, bounds_of([4000, 1001]), 1024)
    assert all(map(torch.equal, (bits, scales), expected))
    found = [
        twin.sign_decode(bits, scales, bounds_of([4000, 1001]), 1024)
        for twin in (native, reference)
    ]
    assert torch.equal(*found)


def test_a_large_mean_is_written_past_the_caches_alike():
    sizes = [300_001, 7, 30_000]
    bits, scales = sent(sizes, 1024, ranks=2)
    found, expected = torch.ones(sum(sizes)), torch.ones(sum(sizes))
    native.sign_add(found, bits, scales, bounds_of(sizes), 1024, 0.5, True)
    reference.sign_add(expected, bits, scales, bounds_of(sizes), 1024, 0.5, True)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("afresh", [False, True])
@pytest.mark.parametrize("ranks", [1, 3, 11])
@pytest.mark.parametrize(
    ("block", "sizes"), [(8, [9, 0, 1, 300]), (1024, [1023, 5000, 0, 3]), (2**40, [5000, 8])]
)
def test_the_device_adds_signs_alike(on_device, device, dtype, afresh, ranks, block, sizes):
    bits, scales = sent(sizes, block, ranks)
    expected = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(1)).to(dtype)
    out = expected.clone() if device == "emulated" else expected.to(device)
    native.sign_add(expected, bits, scales, bounds_of(sizes), block, 0.3, afresh)
    tables = {"bounds": bounds_of(sizes), "block": block, "scale": 0.3, "afresh": afresh}
    on_device("sign_add", out, bits, scales, **tables)
    assert torch.equal(out.cpu(), expected)


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
    with pytest.raises(RuntimeError, match="out has 9 elements, expected the last of bounds, 10"):
        twin.sign_add(values[:9], [bits], [scales], bounds, 8, 1.0)
    with pytest.raises(RuntimeError, match="scales has 1 tensors, expected 2"):
        twin.sign_add(values, [bits, bits], [scales], bounds, 8, 1.0)
    with pytest.raises(RuntimeError, match="has 2 bytes, expected 3"):
        twin.sign_add(values, [bits[:2]], [scales], bounds, 8, 1.0)
    with pytest.raises(RuntimeError, match="has 4 entries, expected 3"):
        twin.sign_add(values, [bits], [torch.ones(4)], bounds, 8, 1.0)


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
    given = (values, [bits], [scales], bounds, 8, 0.5, True)
    torch.library.opcheck(native.sign_add.default, given, test_utils="test_schema")
