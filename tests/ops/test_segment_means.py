import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_compress.ops import reference

native = torch.ops.ddp_compress
on_a_gpu = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.needs_cuda)], indirect=True
)
# `on_device` keeps nothing from one example to the next.
on_examples = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def check_twins(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    expected, found = reference.segment_means(values, counts), native.segment_means(values, counts)
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)
    return found


@every_dtype
@pytest.mark.parametrize("counts", [[], [0], [1], [5, 0, 1, 3000], [0, 0, 7, 0]])
def test_twins_agree(dtype, counts):
    generator = torch.Generator().manual_seed(len(counts))
    values = torch.randn(sum(counts), generator=generator, dtype=dtype)
    check_twins(values, torch.tensor(counts, dtype=torch.int64))


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=6),
        max_size=5,
    )
)
def test_twins_agree_on_any_finite_numbers(segments):
    values = torch.tensor([x for segment in segments for x in segment], dtype=torch.float32)
    check_twins(values, torch.tensor([len(s) for s in segments], dtype=torch.int64))


@pytest.mark.parametrize("scale", [1.0, 1e-45, 1e-38, 1e30, 3e38])
def test_it_is_the_mean(scale):
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * scale
    mean = check_twins(values, torch.tensor([1000])).item()
    assert mean == pytest.approx(values.double().mean().item(), rel=1e-6, abs=1e-45)


@pytest.mark.parametrize("value", [1e300, 1e-300, -1e200])
def test_twins_agree_beyond_the_range_of_fp32(value):
    check_twins(torch.full((3,), value, dtype=torch.float64), torch.tensor([3]))


def test_the_order_of_summation_does_not_matter():
    """So a GPU, which sums in another order, sends the same bits."""
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    count = torch.tensor([5000])
    means = {check_twins(v, count).item() for v in (values, values.flip(0), values.sort().values)}
    assert len(means) == 1


def assert_device_agrees(on_device, values: torch.Tensor, counts: torch.Tensor) -> None:
    """Also where slots are left over."""
    expected = native.segment_means(values, counts)
    for slots in (values, torch.nn.functional.pad(values, (0, 700))):
        found = on_device("segment_means", slots, counts)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def random_counts(segments: int, most: int) -> list[int]:
    generator = torch.Generator().manual_seed(segments)
    return torch.randint(most + 1, (segments,), generator=generator).tolist()


@every_dtype
@pytest.mark.parametrize(
    "counts",
    [
        [],
        [0],
        [1],
        [5, 0, 1, 3000],
        [0, 0, 7, 0],
        [255, 256, 257, 2047, 2048, 2049],
        [30_000],
        [0, 9000, *[3] * 60, 0, 8000, 0],
        random_counts(600, 4),
    ],
)
def test_the_device_agrees(on_device, dtype, counts):
    generator = torch.Generator().manual_seed(len(counts))
    values = torch.randn(sum(counts), generator=generator, dtype=dtype)
    values += 2.0  # so that means are not all alike
    assert_device_agrees(on_device, values, torch.tensor(counts, dtype=torch.int64))
    values[::907] = torch.nan
    values[100::2003] = -torch.inf
    assert_device_agrees(on_device, values, torch.tensor(counts, dtype=torch.int64))


@on_examples
@given(st.lists(st.lists(st.floats(width=32), max_size=6), max_size=5))
def test_the_device_agrees_on_any_numbers(on_device, segments):
    values = torch.tensor([x for segment in segments for x in segment], dtype=torch.float32)
    counts = torch.tensor([len(s) for s in segments], dtype=torch.int64)
    assert_device_agrees(on_device, values, counts)
    assert_device_agrees(on_device, values.double() * 2.0**-800, counts)


@pytest.mark.parametrize("value", [1e300, 1e-300, -1e200, 5e-324, 1.7e308])
def test_the_device_agrees_beyond_the_range_of_fp32(on_device, value):
    values = torch.full((3,), value, dtype=torch.float64)
    assert_device_agrees(on_device, values, torch.tensor([3]))


@pytest.mark.parametrize(
    ("counts", "clipped"),
    [
        ([-5, 3, 2**62, 4], [0, 3, 7, 0]),
        ([2**63 - 1] * 400, [10] + [0] * 399),
        ([-(2**63)] * 300 + [11], [0] * 300 + [10]),
        ([9] * 300, [9, 1] + [0] * 298),
    ],
)
def test_the_device_clips_counts(on_device, counts, clipped):
    values = torch.arange(1.0, 11.0)
    found = on_device("segment_means", values, torch.tensor(counts))
    assert torch.equal(found, native.segment_means(values, torch.tensor(clipped)))


@on_a_gpu
@every_dtype
@pytest.mark.parametrize(
    "counts", [[10**6], [10**7, 0, 1], [10] * 10**5, random_counts(300, 10**5)]
)
def test_the_gpu_agrees_on_many_values(on_device, dtype, counts):
    values = torch.randn(sum(counts), generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert_device_agrees(on_device, values, torch.tensor(counts))


def test_an_empty_segment_has_mean_zero():
    assert check_twins(torch.tensor([1.0, 3.0]), torch.tensor([0, 2, 0])).tolist() == [0, 2, 0]


@every_dtype
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_has_no_mean(bad, dtype):
    values = torch.tensor([1.0, bad, 2.0, 4.0], dtype=dtype)
    for twin in (native, reference):
        means = twin.segment_means(values, torch.tensor([1, 2, 1]))
        assert means.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("counts", [[1], [3], [-1, 3], [1, 2]])
def test_counts_that_do_not_fit_are_refused(counts):
    for twin in (native, reference):
        with pytest.raises(RuntimeError, match="counts"):
            twin.segment_means(torch.ones(2), torch.tensor(counts))


def test_what_it_writes_is_what_its_schema_says():
    args = (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 1]))
    torch.library.opcheck(native.segment_means.default, args, test_utils="test_schema")
