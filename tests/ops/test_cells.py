import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddp_compress.ops import reference

native = torch.ops.ddp_compress
both_twins = pytest.mark.parametrize("twin", [native, reference], ids=["native", "reference"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def as_cells(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def check_twins(op: str, *args) -> torch.Tensor:
    expected, found = getattr(reference, op)(*args), getattr(native, op)(*args)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    return found


@st.composite
def values_in_groups(draw):
    """(values, counts, edges): any numbers at all, often those of the edges."""
    few = st.sampled_from([0.0, -0.0, 1.0, -2.0, 1e-45, float("inf"), float("-inf"), float("nan")])
    number = few | st.floats(width=32)
    groups = draw(st.lists(st.lists(number, max_size=20), max_size=4))
    count = draw(st.integers(0, 31))
    edge = few | st.floats(0, 3)
    edges = [draw(st.lists(edge, min_size=count, max_size=count)) for _ in groups]
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return (
        torch.tensor([x for group in groups for x in group], dtype=dtype),
        torch.tensor([len(group) for group in groups], dtype=torch.int64),
        torch.tensor(edges, dtype=torch.float64).view(len(groups), count),
    )


@given(values_in_groups(), st.integers(1, 65), st.randoms())
def test_twins_agree(given, width, random):
    values, counts, edges = given
    numbers = check_twins("cell_numbers", values, counts, edges)
    assert (numbers <= 2 * (1 + edges.shape[1])).all()
    assert torch.equal(numbers == 0, values == 0)
    cells = as_cells([random.randrange(width) for _ in values])
    means = check_twins("cell_means", values, cells, counts, width)
    check_twins("cell_values", means, cells, counts)


@every_dtype
def test_large_groups(dtype):
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([1000, 0, 1, 700])
    values = torch.randn(1701, generator=generator, dtype=dtype) ** 3
    edges = torch.rand(4, 7, generator=generator, dtype=torch.float64).cumsum(1)
    cells = check_twins("cell_numbers", values, counts, edges)
    means = check_twins("cell_means", values, cells, counts, 17)
    found = check_twins("cell_values", means, cells, counts)
    assert torch.equal(found.sign(), values.sign().float())


@both_twins
def test_cells_go_by_magnitude_and_sign(twin):
    values = torch.tensor([0.5, -0.5, 0.0, -0.0, 1.0, -1.0, 9.0, -9.0, torch.inf, -torch.inf])
    found = twin.cell_numbers(values, torch.tensor([10]), torch.tensor([[1.0, 4.0]]).double())
    assert found.tolist() == [1, 2, 0, 0, 3, 4, 5, 6, 5, 6]


@both_twins
def test_a_nan_is_below_no_edge(twin):
    edges = torch.tensor([[1.0, torch.nan]]).double()
    found = twin.cell_numbers(torch.tensor([torch.nan, 0.5, 2.0]), torch.tensor([3]), edges)
    assert found.tolist() == [6, 3, 5]


@both_twins
def test_edges_are_not_rounded(twin):
    """Beside an edge that fp32 does not hold: the number below it, and the one above."""
    below = torch.tensor([1.0, 1e-45, 3.4028234663852886e38])
    edges = below.double() * (1 + 2**-30)
    above = below.nextafter(torch.tensor(torch.inf))
    values, counts = torch.stack([below, above], 1).flatten(), torch.tensor([2, 2, 2])
    assert twin.cell_numbers(values, counts, edges[:, None]).tolist() == [1, 3] * 3


@both_twins
def test_every_group_has_edges_means_and_values_of_its_own(twin):
    values, counts = torch.tensor([1.0, 3.0, 1.0, 3.0, 5.0]), torch.tensor([2, 0, 3])
    edges = torch.tensor([[2.0], [0.0], [4.0]]).double()
    cells = twin.cell_numbers(values, counts, edges)
    assert cells.tolist() == [1, 3, 1, 1, 3]
    means = twin.cell_means(values, cells, counts, 4)
    assert means.tolist() == [[0, 1, 0, 3], [0, 0, 0, 0], [0, 2, 0, 5]]
    assert twin.cell_values(means, cells, counts).tolist() == [1, 3, 2, 2, 5]


@both_twins
def test_a_mean_of_what_is_not_finite_is_nan(twin):
    values = torch.tensor([torch.inf, 1.0, torch.nan, 2.0])
    means = twin.cell_means(values, as_cells([0, 1, 2, 1]), torch.tensor([4]), 3)
    assert means[:, 1].tolist() == [1.5]
    assert means[:, ::2].isnan().all()


def test_the_order_of_values_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, generator=generator)
    cells = torch.randint(5, (1000,), generator=generator).byte()
    count = torch.tensor([1000])
    expected = native.cell_means(values, cells, count, 5)
    assert torch.equal(native.cell_means(values.flip(0), cells.flip(0), count, 5), expected)


@both_twins
def test_bad_input_is_refused(twin):
    values, cells, edges = torch.ones(2), as_cells([0, 4]), torch.ones(1, 3).double()
    table = torch.ones(1, 4)
    for counts in map(torch.tensor, ([1], [3], [3, -1])):
        with pytest.raises(RuntimeError, match="counts"):
            twin.cell_numbers(values, counts, edges.expand(len(counts), 3).contiguous())
        with pytest.raises(RuntimeError, match="counts"):
            twin.cell_means(values, cells, counts, 5)
        with pytest.raises(RuntimeError, match="counts"):
            twin.cell_values(torch.ones(len(counts), 5), cells, counts)
    two = torch.tensor([2])
    for width in (0, 66):
        with pytest.raises(RuntimeError, match=rf"within \[1, 65\], got {width}"):
            twin.cell_means(values, cells, two, width)
    with pytest.raises(RuntimeError, match="cells must lie below the width, 4, got 4"):
        twin.cell_means(values, cells, two, 4)
    with pytest.raises(RuntimeError, match="cells must lie below the width, 4, got 4"):
        twin.cell_values(table, cells, two)
    with pytest.raises(RuntimeError, match="expected up to 31"):
        twin.cell_numbers(values, two, torch.ones(1, 32).double())


def test_tensors_that_do_not_fit_are_refused():
    two, cells = torch.tensor([2]), as_cells([0, 1])
    with pytest.raises(RuntimeError, match="values has 3 elements, expected one for each of 2"):
        native.cell_means(torch.ones(3), cells, two, 2)
    with pytest.raises(RuntimeError, match="table must have a row for each of 1 groups"):
        native.cell_values(torch.ones(2, 2), cells, two)
    with pytest.raises(RuntimeError, match="edges must have a row for each of 1 groups"):
        native.cell_numbers(torch.ones(2), two, torch.ones(2, 3).double())
    with pytest.raises(RuntimeError, match="cells has dtype"):
        native.cell_values(torch.ones(1, 2), torch.tensor([0, 1]), two)


def test_what_it_writes_is_what_its_schema_says():
    values, cells, two = torch.ones(2), as_cells([0, 1]), torch.tensor([2])
    for op, args in (
        (native.cell_numbers, (values, two, torch.ones(1, 3).double())),
        (native.cell_means, (values, cells, two, 2)),
        (native.cell_values, (torch.ones(1, 2), cells, two)),
    ):
        torch.library.opcheck(op.default, args, test_utils="test_schema")
