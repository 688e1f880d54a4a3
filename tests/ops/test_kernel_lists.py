"""Whole kernels of convolutions and single entries, out of one list and into it again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress.ops import reference

native = torch.ops.ddp_compress
Tables = tuple[Tensor, Tensor, Tensor]


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def tables_of(*parameters: tuple[int, int, int]) -> Tables:
    """Of parameters of so many blocks, with kernels of m elements that lie a stride apart."""
    sizes = torch.tensor([blocks * m * stride for blocks, m, stride in parameters])
    numels, strides = (torch.tensor([each[i] for each in parameters]).long() for i in (1, 2))
    return torch.nn.functional.pad(sizes.long().cumsum(0), (1, 0)), numels, strides


def check_both(found, expected) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


# Of one parameter three blocks, of which each has two kernels of three elements: 0 2 4, 1 3 5, ...
STRIDED = tables_of((3, 3, 2))


def test_whole_kernels_are_found():
    positions = int32(0, 2, 3, 4, 7, 8, 9, 11, 12)
    values = torch.arange(9.0)
    kernels, of_kernels, singles, of_singles = native.split_kernels(positions, values, *STRIDED)
    assert kernels.tolist() == [0, 3]
    assert of_kernels.tolist() == [0, 1, 3, 4, 6, 7]
    assert singles.tolist() == [3, 8, 12]
    assert of_singles.tolist() == [2, 5, 8]


def test_entries_of_several_lists_are_put_in_order():
    lists = [int32(1), int32(0)], [torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5, 6])]
    single = int32(8), torch.tensor([7.0])
    positions, values = native.join_kernels(*lists, *single, *STRIDED)
    assert positions.tolist() == [0, 1, 2, 3, 4, 5, 8]
    assert values.tolist() == [4, 1, 5, 2, 6, 3, 7]


def test_what_comes_twice_is_there_twice():
    lists = [int32(0), int32(0)], [torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5, 6])]
    for twin in (native, reference):
        positions, values = twin.join_kernels(*lists, int32(2), torch.tensor([7.0]), *STRIDED)
        assert positions.tolist() == [0, 0, 2, 2, 2, 4, 4]
        assert values.tolist() == [1, 4, 2, 5, 7, 3, 6]


@st.composite
def layouts(draw) -> Tables:
    kernel = st.tuples(st.integers(0, 4), st.integers(2, 5), st.integers(1, 4))
    single = st.tuples(st.integers(0, 9), st.just(1), st.just(1))
    return tables_of(*draw(st.lists(kernel | single, max_size=5)))


@given(layouts(), st.sampled_from([0.1, 0.8, 1.0]), st.integers(0, 99), st.booleans())
def test_twins_agree(tables, share, seed, double):
    generator = torch.Generator().manual_seed(seed)
    numel = int(tables[0][-1])
    positions = (torch.rand(numel, generator=generator) < share).nonzero().flatten().int()
    values = torch.randn(len(positions), generator=generator).to(
        torch.float64 if double else torch.float32
    )
    found = native.split_kernels(positions, values, *tables)
    check_both(found, reference.split_kernels(positions, values, *tables))

    kernels, of_kernels, singles, of_singles = found
    check_both(
        native.join_kernels([kernels], [of_kernels], singles, of_singles, *tables),
        (positions, values),
    )
    starts = reference.kernel_lists.starts_of(*tables[:2])
    sizes = tables[1][torch.searchsorted(starts, kernels.long(), right=True) - 1]
    first = torch.rand(len(kernels), generator=generator) < 0.5
    second = ~first | (torch.rand(len(kernels), generator=generator) < 0.1)
    parts = [of_kernels[each.repeat_interleave(sizes)] for each in (first, second)]
    several = [kernels[first], kernels[second]], parts, singles, of_singles, *tables
    check_both(native.join_kernels(*several), reference.join_kernels(*several))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (tables_of((2, 3, 0)), "numels.0. and strides.0. must be positive, got 3 and 0"),
        ((torch.tensor([0, 7]), *tables_of((1, 3, 2))[1:]), "expected whole blocks of 3 times 2"),
        ((torch.tensor([0, 4]), *tables_of((1, 1, 2))[1:]), "expected whole blocks of 1 times 2"),
        ((torch.tensor([0, 6]), torch.tensor([3, 3]), torch.tensor([1])), "numels has 2"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tables, message):
    with pytest.raises(RuntimeError, match=message):
        native.split_kernels(int32(), torch.zeros(0), *tables)


@pytest.mark.parametrize(
    ("kernels", "count", "message"),
    [
        ([6], 3, "must ascend strictly within .0, 6."),
        ([-1], 3, "must ascend strictly"),
        ([2, 2], 6, "must ascend strictly"),
        ([2, 3], 5, "of_kernels has 5 elements, expected 6"),
    ],
)
def test_kernels_that_do_not_fit_are_refused(kernels, count, message):
    with pytest.raises(RuntimeError, match=message):
        native.join_kernels(
            [int32(*kernels)], [torch.zeros(count)], int32(), torch.zeros(0), *STRIDED
        )


def test_positions_that_do_not_fit_are_refused():
    for positions in (int32(18), int32(2, 1)):
        values = torch.zeros(len(positions))
        with pytest.raises(RuntimeError, match=r"must ascend strictly within .0, 18."):
            native.split_kernels(positions, values, *STRIDED)
        with pytest.raises(RuntimeError, match=r"must ascend strictly within .0, 18."):
            native.join_kernels([int32()], [torch.zeros(0)], positions, values, *STRIDED)


def test_what_they_write_is_what_their_schemas_say():
    split = int32(0, 2, 3), torch.ones(3), *STRIDED
    torch.library.opcheck(native.split_kernels.default, split, test_utils="test_schema")
    join = [int32(0)], [torch.ones(3)], int32(3), torch.ones(1), *STRIDED
    torch.library.opcheck(native.join_kernels.default, join, test_utils="test_schema")
