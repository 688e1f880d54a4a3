"""Lists of W ranks at once: positions by Elias-Fano, then values or means."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress.ops import reference
from ddp_compress.ops.reference.elias_fano import elias_fano_size
from ddp_compress.ops.reference.entries import UNUSED
from ddp_compress.ops.reference.wire_format import DecodeError

native = torch.ops.ddp_compress
DTYPES = [None, torch.float32, torch.float16, torch.bfloat16]
on_examples = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

Given = tuple[list[Tensor], Tensor, int, int, torch.dtype | None]


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def body_of(positions: Sequence[int], values: Tensor, numel: int, k: int) -> Tensor:
    data = native.elias_fano_encode(int32(*positions), numel, k)
    return torch.cat([data, values.view(torch.uint8)])


@st.composite
def lists(draw, damaged: bool) -> Given:
    """What ranks have sent, some of it damaged."""
    ends = sorted(draw(st.sets(st.integers(1, 300), min_size=1, max_size=5)))
    k = draw(st.integers(len(ends), ends[-1]))
    numel = ends[-1] + draw(st.integers(0, 40))  # the last parameters are in no group
    dtype = draw(st.sampled_from(DTYPES))
    bodies = []
    for _ in range(draw(st.integers(1, 10))):
        most = numel if damaged else ends[-1]
        positions = sorted(draw(st.sets(st.integers(0, most - 1), max_size=k)))
        count = len(ends) if dtype is None else len(positions)
        numbers = st.sampled_from([0.0, -1.5, 3e38, float("nan")]) if damaged else st.just(2.0)
        values = draw(st.lists(numbers, min_size=count, max_size=count))
        body = body_of(positions, torch.tensor(values).to(dtype or torch.float32), numel, k)
        if damaged:
            keep = draw(st.integers(0, len(body)) | st.just(len(body)))
            extra = draw(st.binary(max_size=5))
            body = torch.cat([body[:keep], torch.tensor(list(extra), dtype=torch.uint8)])
            for bit in draw(st.lists(st.integers(0, max(0, 8 * len(body) - 1)), max_size=2)):
                if len(body):
                    body[bit // 8] ^= 1 << bit % 8
        bodies.append(body)
    return bodies, int32(*ends), numel, k, dtype


def alike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """The same bits, but for those of a NaN."""
    return all(torch.equal(bits_of(a), bits_of(b)) for a, b in zip(found, expected, strict=True))


def bits_of(numbers: Tensor) -> Tensor:
    return numbers.masked_fill(numbers.isnan(), 7).view(torch.uint8)


@given(st.booleans().flatmap(lists))
def test_both_twins_find_the_same(given):
    assert alike(native.entries_decode(*given), reference.entries_decode(*given))


@on_examples
@given(st.booleans().flatmap(lists))
def test_the_device_finds_the_same(on_device, given):
    assert alike(on_device("entries_decode", *given), native.entries_decode(*given))


@given(lists(damaged=False))
def test_a_good_list_is_read_as_its_parts_are(given):
    bodies, ends, numel, k, _ = given
    indices, values, words = native.entries_decode(*given)
    for body, mine, worth, word in zip(bodies, indices, values, words, strict=True):
        found, used = native.elias_fano_decode(body, numel, k)
        assert word.tolist() == [int(used), *torch.searchsorted(found, ends).tolist()]
        assert mine[: len(found)].tolist() == found.tolist()
        assert mine[len(found) :].eq(UNUSED).all()
        assert worth.tolist() == [2.0] * len(found) + [0.0] * (k - len(found))


GOOD = [1.0, 2.0]


@pytest.mark.parametrize(
    ("positions", "values", "dtype", "error"),
    [
        ([1, 7], GOOD, None, None),
        ([1, 7], GOOD, torch.bfloat16, None),
        ([1, 8], GOOD, torch.float32, DecodeError.BAD_VALUES),  # in no group
        ([1, 8], GOOD, None, DecodeError.BAD_VALUES),
        ([1], GOOD, torch.float16, DecodeError.BAD_VALUES),  # one value too many
        ([1, 2, 3], GOOD, torch.float16, DecodeError.BAD_VALUES),  # too few
        ([], [], torch.float16, None),
        ([], GOOD, None, None),
        ([], GOOD, torch.float16, DecodeError.BAD_VALUES),
        ([1, 7], [1.0, float("inf")], torch.float16, DecodeError.BAD_VALUES),
        ([1], [1.0, float("nan")], None, DecodeError.BAD_VALUES),  # of a group without entries
    ],
)
def test_what_is_bad(on_device, positions, values, dtype, error):
    body = body_of(positions, torch.tensor(values).to(dtype or torch.float32), numel=9, k=4)
    given = [body], int32(4, 8), 9, 4, dtype
    status = native.entries_decode(*given)[2][0, 0]
    assert status == (elias_fano_size(9, 4) if error is None else error)
    assert alike(on_device("entries_decode", *given), native.entries_decode(*given))


def test_many_positions_over_many_tiles(on_device):
    """More than one block has to read, of more ranks than travel as arguments."""
    torch.manual_seed(0)
    numel, k = 60_000, 9_000
    ends = int32(*range(3_000, numel + 1, 3_000))
    bodies = []
    for count in (k, 0, 1, 8_000, k, 300, 17, k, 5, 4_000):
        positions = torch.randperm(numel)[:count].sort().values.tolist()
        bodies.append(body_of(positions, torch.randn(count).half(), numel, k))
    bodies[2] = bodies[2][:-1]
    given = bodies, ends, numel, k, torch.float16
    assert alike(on_device("entries_decode", *given), native.entries_decode(*given))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 301}, "k = 301 must lie within"),
        ({"k": 0}, "group_ends has 1 entries, expected at most k = 0"),
        ({"dtype": torch.float64}, "values have dtype"),
        ({"group_ends": torch.tensor([300])}, "group_ends has dtype"),
        ({"bodies": [torch.zeros(3)]}, "bodies has dtype"),
    ],
)
def test_bad_arguments(change, words):
    good = {
        "bodies": [torch.zeros(3, dtype=torch.uint8)],
        "group_ends": int32(300),
        "numel": 300,
        "k": 3,
        "dtype": None,
    }
    with pytest.raises(RuntimeError, match=words):
        native.entries_decode(**good | change)
