"""Kernels of convolutions and single entries, ranked by what they carry for their price."""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress.ops import reference

native = torch.ops.ddp_compress
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

# Parameters: elements, those of a kernel, how far apart these lie, and the group.
LAYOUTS = {
    "convolution": [(9 * 4000, 9, 1, 0)],
    "channels_last": [(9 * 64 * 50, 9, 64, 0), (4 * 30, 4, 3, 0)],
    "mixed": [(49 * 96, 49, 1, 0), (64, 1, 1, 0), (9 * 2000, 9, 1, 0), (3000, 1, 1, 0)],
    "many groups": [(90, 9, 2, 0), (0, 1, 1, -1), (18, 9, 1, -1), (40, 1, 1, 1), (27, 9, 3, 2)],
    "large kernels": [(200 * 40, 200, 2, 0), (127 * 30, 127, 1, 0), (128 * 30, 128, 1, 0)],
    "large": [(9 * 15000, 9, 1, 0), (70_000, 1, 1, 1), (9 * 10_000, 9, 50, 2)],
    "no kernels": [(100, 1, 1, 0), (10, 1, 1, 0)],
    "none": [(0, 1, 1, -1)],
}
KINDS = ("normal", "few distinct", "equal", "sparse", "heavy", "smallest", "largest", "zeros")


class Given(NamedTuple):
    """What the ops are given, and what else the ranking is."""

    tables: tuple[Any, ...]
    patterns: list[Tensor]
    prices: Tensor
    single_prices: Tensor

    @property
    def sizes(self) -> list[int]:
        return sorted(set(self.tables[2].tolist()) - {1})


def numbers(kind: str, numel: int, m: int, dtype: torch.dtype, generator) -> Tensor:
    """Values of a parameter; those of a kernel have much in common."""
    noise = torch.randn(numel, generator=generator, dtype=torch.float64)
    own = torch.randn(numel // m, generator=generator, dtype=torch.float64).repeat_interleave(m)
    values = (noise + own) * own.exp()
    match kind:
        case "few distinct":
            values = values.clamp(-2, 2).round()
        case "equal":
            values = torch.ones_like(values)
        case "sparse":
            values = values * (noise > 2)
        case "heavy":
            values = values**5
        case "smallest":
            values = values.clamp(-9, 9) * (1e-44 if dtype == torch.float32 else 1e-322)
        case "largest":
            values = values.sign() * (1e38 if dtype == torch.float32 else 1e300)
        case "zeros":
            values = torch.zeros_like(values)
    return values.to(dtype)


def make(
    layout: str, kind: str = "normal", dtype=torch.float32, share=0.1, patterns=2, seed=0
) -> Given:
    generator = torch.Generator().manual_seed(seed)
    parameters = LAYOUTS[layout]
    parts = [numbers(kind, n, m, dtype, generator) for n, m, _, _ in parameters]
    chunks = [torch.cat(parts[:2]), *parts[2:]] if len(parts) > 1 else parts
    sizes, numels, strides, groups = (
        torch.tensor([each[i] for each in parameters]) for i in range(4)
    )
    bounds = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    of_groups = [int(sizes[groups == g].sum()) for g in range(int(groups.max()) + 1)]
    ks = torch.tensor([max(1, round(share * n)) for n in of_groups], dtype=torch.int64)
    prices = 3 + 5 * torch.rand(
        len(parameters), 2 * patterns + 1, generator=generator, dtype=torch.float64
    )
    single = 2 + 4 * torch.rand(len(parameters), generator=generator, dtype=torch.float64)
    signs = [
        torch.randn(patterns, m, generator=generator, dtype=torch.float64).sign()
        for m in sorted(set(numels.tolist()) - {1})
    ]
    return Given((chunks, bounds, numels, strides, groups, ks), signs, prices, single)


def check_twins(given: Given) -> list[Tensor]:
    for m in given.sizes:
        for count in (0, 1, 7, 2048):
            ours, theirs = (t.largest_kernels(*given.tables, m, count) for t in (native, reference))
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
    ours, theirs = (t.rank_kernels(*given.tables, *given[1:]) for t in (native, reference))
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    return ours


@pytest.fixture(params=[False, True], ids=["wide", "portable"])
def path(request, monkeypatch) -> None:
    if request.param:
        monkeypatch.setenv("DDP_COMPRESS_PORTABLE", "1")


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_twins_agree(path, layout, kind, dtype):
    for share in (0.001, 0.1, 1.0):
        check_twins(make(layout, kind, dtype, share))


@settings(max_examples=60)
@given(
    st.sampled_from(["many groups", "no kernels"]),
    st.sampled_from(KINDS),
    st.floats(0.001, 1.0),
    st.integers(1, 9),
    st.integers(0, 10**6),
)
def test_twins_agree_on_few_entries(layout, kind, share, patterns, seed):
    check_twins(make(layout, kind, share=share, patterns=patterns, seed=seed))


def test_kinds_of_entries_are_found():
    """Or the others would compare nothing."""
    for layout in ("channels_last", "large"):
        kernels, ways, values, singles = check_ranked(make(layout, "heavy"))
        assert len(kernels) == len(ways) > 0 < len(singles)
        assert len(values) + len(singles) <= int(make(layout).tables[-1].sum())
    found = [check_ranked(make("large", seed=seed))[1].tolist() for seed in range(4)]
    assert {way for ways in found for way in ways} == {0, 1, 2, 3, 4}


def one_kernel_each(
    *kernels: list[float], k: int, single: float = 1.0, prices: tuple[float, ...] = (2.0, 2.0, 4.0)
) -> list[Tensor]:
    """The ranking of kernels of two elements; their pattern is two times a plus."""
    values = torch.tensor(kernels, dtype=torch.float32).flatten()
    tables = torch.tensor([0, len(values)]), torch.tensor([2]), torch.tensor([1])
    groups = torch.tensor([0]), torch.tensor([k])
    doubles = [torch.tensor(each, dtype=torch.float64) for each in ([[1.0, 1]], [prices], [single])]
    given = [values], *tables, *groups, [doubles[0]], *doubles[1:]
    ours, theirs = (twin.rank_kernels(*given) for twin in (native, reference))
    for found, expected in zip(ours, theirs, strict=True):
        assert torch.equal(found, expected)
    return [each.tolist() for each in ours]


def test_a_kernel_travels_in_its_best_way():
    kernels, ways, values, _ = one_kernel_each([3, 2], [-3, -2], [3, -2], k=6, single=9.0)
    assert kernels == [0, 1, 2]
    assert ways == [0, 1, 2]
    assert values == [2.5, 2.5, -2.5, -2.5, 2.5, -2.5]


def test_of_equal_ways_the_first_is_taken():
    assert one_kernel_each([1, 0], k=2, single=9.0, prices=(2.0, 2.0, 2.0))[1] == [0]


def test_of_a_broken_kernel_travels_what_is_worth_more_alone():
    """Its other entry has the kernel's worth, and its place in the ranking is lost."""
    assert one_kernel_each([9, 1], [6, 6], k=3)[::3] == [[1], [0]]
    assert one_kernel_each([9, 1], [2, 2], k=2)[::3] == [[0], []]
    assert one_kernel_each([9, 8], [2, 2], k=1)[::3] == [[], [0]]


def test_of_equal_kernels_the_first_are_taken():
    assert one_kernel_each([4, 4], [4, 4], [4, 4], k=5, single=9.0)[::3] == [[0, 1], []]


def test_zeros_are_never_taken():
    assert one_kernel_each([0, 0], [1, 0], k=4, single=9.0)[::3] == [[1], []]
    assert one_kernel_each([0, 0], [0, 0], k=4)[::3] == [[], []]


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(("chunk", "at"), [(0, 7), (0, 4710), (1, 17_999)])
def test_nothing_travels_where_a_worth_is_not_finite(path, bad, chunk, at):
    given = make("mixed")
    given.tables[0][chunk][at] = bad
    assert [len(each) for each in check_ranked(given)] == [0, 0, 0, 0]


def check_ranked(given: Given) -> list[Tensor]:
    ours, theirs = (t.rank_kernels(*given.tables, *given[1:]) for t in (native, reference))
    assert [each.tolist() for each in ours] == [each.tolist() for each in theirs]
    return ours


def test_a_worth_that_overflows_is_not_finite():
    given = make("convolution", dtype=torch.float64)
    given.tables[0][0][:9] = 1.7e308
    assert [len(each) for each in check_ranked(given)] == [0, 0, 0, 0]


def test_what_belongs_to_no_group_may_be_anything():
    given = make("many groups")
    given.tables[0][1].fill_(torch.nan)  # of the parameter that is left out
    assert len(check_ranked(given)[0]) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [torch.ones(17), torch.ones(1)]}, "a parameter lies on both sides of 17"),
        ({"values": [torch.ones(17)]}, "bounds must run from 0 to 17"),
        ({"values": [torch.ones(18).int()]}, "values has dtype Int"),
        ({"groups": torch.tensor([1])}, "groups.0. is 1"),
        ({"ks": torch.tensor([0])}, "ks must be positive"),
        ({"strides": torch.tensor([4])}, "expected whole blocks of 9 times 4"),
        ({"patterns": []}, "patterns holds none for kernels of 9 elements"),
        ({"patterns": [torch.ones(2, 9).double()]}, "patterns must hold matrices of 1 rows"),
        ({"patterns": [torch.zeros(1, 9).double()]}, "patterns must hold 1 and -1"),
        ({"prices": torch.ones(1, 2).double()}, "an odd number of ways each"),
        ({"prices": torch.zeros(1, 3).double()}, "prices must be positive"),
        ({"single_prices": torch.ones(2).double()}, "single_prices has 2"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {
        "values": [torch.ones(18)],
        "bounds": torch.tensor([0, 18]),
        "numels": torch.tensor([9]),
        "strides": torch.tensor([1]),
        "groups": torch.tensor([0]),
        "ks": torch.tensor([9]),
        "patterns": [torch.ones(1, 9).double()],
        "prices": torch.ones(1, 3).double(),
        "single_prices": torch.ones(1).double(),
    }
    assert native.rank_kernels(**given)[0].tolist() == [0]
    with pytest.raises(RuntimeError, match=message):
        native.rank_kernels(**given | change)


def test_sizes_and_counts_are_checked():
    for m, count in ((1, 5), (9, -1)):
        with pytest.raises(RuntimeError, match="m must be 2 or more and count 0 or more"):
            native.largest_kernels(*make("convolution").tables, m, count)


def test_what_they_write_is_what_their_schemas_say():
    given = make("many groups")
    rank, largest = (*given.tables, *given[1:]), (*given.tables, 9, 3)
    torch.library.opcheck(native.rank_kernels.default, rank, test_utils="test_schema")
    torch.library.opcheck(native.largest_kernels.default, largest, test_utils="test_schema")
