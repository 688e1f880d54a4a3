from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress import ops
from ddp_compress.ops import reference
from ddp_compress.ops.reference.hadamard import hadamard, inverse_hadamard
from ddp_compress.ops.reference.rotated import block_sizes
from ddp_compress.quantize.rotated import NO_MASKS, NO_PLACES, NO_SALTS, free_places, sent_masks

native = torch.ops.ddp_compress
both_twins = pytest.mark.parametrize("twin", [native, reference], ids=["native", "reference"])
every_width = pytest.mark.parametrize("bits", range(1, 9))
COUNTS = [[], [0], [31], [5, 32, 0, 33], [64, 1000], [2000, 4096], [20_000, 7936]]
every_size = pytest.mark.parametrize("counts", COUNTS, ids=repr)


class Way(NamedTuple):
    """How values are turned, and what of it travels."""

    turned: bool = True
    free: bool = False
    keep: float = 1.0
    unbiased: bool = True
    iterations: int = 1

    def tables(self, counts: Sequence[int]) -> dict[str, Tensor]:
        """What both sides know."""
        salts = reference.random_words(torch.arange(len(counts)), torch.tensor([3]))
        return {
            "sizes": torch.tensor(counts, dtype=torch.int64),
            "signs": salts if self.turned else NO_SALTS,
            "free": free_places(torch.tensor([5])) if self.free else NO_PLACES,
            "sent": sent_masks(6, self.keep) if self.keep < 1 else NO_MASKS,
        }

    def drawn(self, counts: Sequence[int], bits: int) -> dict[str, Tensor | int]:
        """What an encoder is told: all of it."""
        salts = reference.random_words(torch.arange(len(counts)), torch.tensor([4]))
        return {
            **self.tables(counts),
            "noises": salts,
            "unbiased": self.unbiased,
            "iterations": self.iterations,
            "bits": bits,
        }


NONE, HADAMARD = Way(turned=False), Way()
WAYS = {
    "none": NONE,
    "hadamard": HADAMARD,
    "kashin": Way(free=True, iterations=3),
    "some": Way(keep=0.3),
    "some, fed back": Way(keep=0.3, unbiased=False),
    "some of kashin": Way(free=True, keep=0.7, iterations=2),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture(params=["wide", "portable"])
def path(request, monkeypatch) -> None:
    if request.param == "portable":
        monkeypatch.setenv("DDP_COMPRESS_PORTABLE", "1")


def tails(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count)) ** 3


def numbers_and_codes(data: Tensor, counts: Sequence[int], hold: int = 32) -> tuple[Tensor, Tensor]:
    blocks = sum(len(block_sizes(count, hold)) for count in counts)
    numbers = sum(count % hold for count in counts) + 2 * blocks
    return data[: 4 * numbers].clone().view(torch.float32), data[4 * numbers :]


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal bits, but for those of a NaN."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def check_twins(
    values: Tensor, counts: Sequence[int], way: Way, bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode and decode with both; returns numbers, codes and what is decoded."""
    drawn, known = way.drawn(counts, bits), way.tables(counts)
    data = native.rotated_encode(values, **drawn)
    expected = reference.rotated_encode(values, **drawn)
    hold = 31 if way.free else 32
    pair = numbers_and_codes(data, counts, hold)
    for ours, theirs in zip(pair, numbers_and_codes(expected, counts, hold), strict=True):
        assert_same(ours, theirs)
    found = native.rotated_decode(data, **known, bits=bits)
    assert_same(found, reference.rotated_decode(data, **known, bits=bits))
    return *pair, found


@every_size
@every_way
@pytest.mark.usefixtures("path")
def test_twins_agree(way, counts):
    check_twins(tails(sum(counts)), counts, way, bits=4)


@every_width
@pytest.mark.usefixtures("path")
def test_twins_agree_on_codes_of_every_width(bits):
    for way in (NONE, Way(keep=0.01), Way(keep=0.3)):
        numbers, _, found = check_twins(tails(1000), [1000], way, bits)
        if way == NONE:
            steps = (
                numbers[8:]
                .view(-1, 2)[:, 1]
                .repeat_interleave(torch.tensor([512, 256, 128, 64, 32]))
            )
            assert ((found - tails(1000))[:992].abs() <= 1.001 * steps).all()


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=8), st.integers(0, 100), st.integers(1, 8)
)
def test_twins_agree_on_any_numbers(some, count, bits):
    values = torch.tensor(some, dtype=torch.float32).repeat(count)[:count]
    for way in (NONE, Way(free=True, iterations=2)):
        check_twins(values, [count], way, bits)


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_any_bytes_are_decoded_alike(seed, bits):
    counts, way = [70, 3], Way(free=True, keep=0.7)
    size = len(native.rotated_encode(torch.zeros(73), **way.drawn(counts, bits)))
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(256, (size,), generator=generator, dtype=torch.uint8)
    found, expected = (
        twin.rotated_decode(data, **way.tables(counts), bits=bits) for twin in (native, reference)
    )
    assert_same(found, expected)


@every_size
@every_way
def test_the_device_agrees(on_device, way, counts):
    values = tails(sum(counts))
    values[len(values) // 2 :: 50] = -0.0
    for bits in (3, 8):
        data = native.rotated_encode(values, **way.drawn(counts, bits))
        assert torch.equal(on_device("rotated_encode", values, **way.drawn(counts, bits)), data)
        found = on_device("rotated_decode", data, **way.tables(counts), bits=bits)
        assert_same(found, native.rotated_decode(data, **way.tables(counts), bits=bits))


# --------------------------------------------------------------------- what ranks send, added up

GROUPS = [40, 9000, 0, 33, 500]
SOME = (40, 9033)  # the second to the fourth of them
every_result = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64]
)
afresh_or_not = pytest.mark.parametrize("afresh", [False, True], ids=["added", "afresh"])


def sent(way: Way, ranks: int) -> list[Tensor]:
    """What so many ranks send."""
    return [
        native.rotated_encode(tails(sum(GROUPS)) * (rank + 1), **way.drawn(GROUPS, 4))
        for rank in range(ranks)
    ]


@every_way
@every_result
@afresh_or_not
@pytest.mark.usefixtures("path")
def test_values_are_added_as_if_decoded(way, dtype, afresh):
    """Rank after rank, of some groups, wherever the result begins; nothing beside is touched."""
    data, limit = sent(way, ranks=3), 2.5
    start, numel = SOME
    around = tails(numel + 8).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    total = around[3:-5].to(wide) * (0 if afresh else 1)
    for each in data:
        values = native.rotated_decode(each, **way.tables(GROUPS), bits=4)[start:][:numel]
        total = total + values.clamp(-limit, limit).to(wide) * torch.tensor(1 / 3, dtype=wide)
    expected = torch.cat([around[:3], total.to(dtype), around[-5:]])
    for twin in (native, reference) if way == HADAMARD else (native,):
        found = around.clone()
        tables = (*way.tables(GROUPS).values(), 4)
        twin.rotated_add(found[3:-5], start, data, *tables, limit, 1 / 3, afresh)
        assert torch.equal(found, expected)


@every_way
@every_result
@afresh_or_not
@pytest.mark.parametrize("ranks", [1, 11])
def test_the_device_adds_alike(on_device, device, way, dtype, afresh, ranks):
    start, numel = SOME
    data, expected = sent(way, ranks), tails(numel).to(dtype)
    out = expected.clone() if device == "emulated" else expected.to(device)
    tables = (*way.tables(GROUPS).values(), 4)
    native.rotated_add(expected, start, data, *tables, torch.inf, 0.3, afresh)
    named = {**way.tables(GROUPS), "bits": 4, "limit": torch.inf, "scale": 0.3, "afresh": afresh}
    on_device("rotated_add", out, start, data, **named)
    assert torch.equal(out.cpu(), expected)


@both_twins
def test_parts_of_a_group_are_refused(twin):
    (data,) = sent(HADAMARD, ranks=1)
    tables = (*HADAMARD.tables(GROUPS).values(), 4)
    for start, numel in ((0, 41), (39, 1), (40, 9000 + 34)):
        with pytest.raises(RuntimeError, match=f"whole groups, got {numel} values from the"):
            twin.rotated_add(torch.ones(numel), start, [data], *tables, 1.0, 1.0)
    with pytest.raises(RuntimeError, match="data has 3 elements"):
        twin.rotated_add(torch.ones(40), 0, [data[:3]], *tables, 1.0, 1.0)


@every_way
def test_only_the_block_of_a_nan_has_no_levels(on_device, way):
    counts = [62, 62, 62]
    values = tails(186)
    values[70] = torch.nan
    hold = 31 if way.free else 32
    numbers, codes, _ = check_twins(values, counts, way, bits=3)
    assert numbers[-6:].isnan().tolist() == [False, False, True, True, False, False]
    assert codes[len(codes) // 3 : 2 * len(codes) // 3].eq(0).all()
    there = on_device("rotated_encode", values, **way.drawn(counts, 3))
    for ours, theirs in zip(numbers_and_codes(there, counts, hold), (numbers, codes), strict=True):
        assert_same(ours, theirs)


@every_width
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -1e-45, 1e26])
def test_equal_values_come_back(bits, value):
    values = torch.full((40,), value)
    assert torch.equal(check_twins(values, [40], NONE, bits)[2], values)


@both_twins
@pytest.mark.parametrize("value", [3e38, -torch.inf])
def test_values_are_cut_off(twin, value):
    """Those that fill no block, too."""
    data = twin.rotated_encode(torch.full((33,), value), **NONE.drawn([33], 2))
    found = twin.rotated_decode(data, **NONE.tables([33]), bits=2)
    assert torch.equal(found, torch.full((33,), 1e26).copysign(torch.tensor(value)))


@every_width
def test_the_mean_of_many_draws_is_the_number(bits):
    """Of 2000 draws, each a group of its own, within 5 standard errors."""
    values = torch.tensor([-1.0, -0.7, -0.1, 0.0, 0.03, 0.5, 0.9, 2.0]).repeat(4)
    counts = [32] * 2000
    data = native.rotated_encode(values.repeat(2000), **NONE.drawn(counts, bits))
    draws = native.rotated_decode(data, **NONE.tables(counts), bits=bits).view(2000, 32)
    mean, error = draws.mean(0), draws.std(0) / 2000**0.5
    assert ((mean - values).abs() <= 5 * error + 1e-5).all()


@both_twins
def test_golden_bytes(twin):
    values = torch.tensor([0.0, 7.0, 1.0, 2.0, 3.0, 6.0, 5.0, 4.0]).repeat(4)
    data = twin.rotated_encode(torch.cat([values, torch.tensor([-9.0])]), **NONE.drawn([33], 3))
    numbers, codes = numbers_and_codes(data, [33])
    assert numbers.tolist() == [-9.0, 0.0, 1.0]
    fields = sum(int(value) << 3 * i for i, value in enumerate(values))
    assert bytes(codes.tolist()) == fields.to_bytes(12, "little")


def test_free_places_hold_nothing_and_what_is_not_sent_is_zero():
    """Where nothing is turned, coefficients are values."""
    way = Way(turned=False, free=True, keep=0.5)
    known = way.tables([31])
    values = torch.arange(1.0, 32.0)
    _, _, found = check_twins(values, [31], way, 8)
    filled = torch.ones(32, dtype=torch.bool)
    filled[known["free"][0]] = False
    sent = known["sent"][:32][filled]
    assert found[~sent].eq(0).all()
    torch.testing.assert_close(found[sent], 2 * values[sent], rtol=0.3, atol=0.3)


@pytest.mark.parametrize("size", [32, 128, 8192])
def test_lengths_stay_and_the_inverse_undoes_it(size):
    values, salt = tails(size), torch.tensor([size])
    turned = hadamard(values, salt)
    torch.testing.assert_close(turned.norm(), values.norm())
    torch.testing.assert_close(inverse_hadamard(turned, salt), values, rtol=1e-5, atol=1e-4)


def test_it_is_the_matrix_of_hadamard_with_random_signs():
    matrix = torch.ones(1, 1)
    for _ in range(7):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    rows = [hadamard(row, torch.tensor([77])) for row in torch.eye(128)]
    found = torch.stack(rows) * 128**0.5
    signs = found[:, 0].round()
    torch.testing.assert_close(found, signs[:, None] * matrix)
    assert 40 < int((signs > 0).sum()) < 88  # random ones, 8 standard deviations either way
    assert signs.unique().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100, 8192, 20_000])
@pytest.mark.parametrize("hold", [31, 32])
def test_blocks_hold_all_but_a_few_values_and_pad_none(count, hold):
    sizes = block_sizes(count, hold)
    assert sizes == sorted(sizes, reverse=True)
    assert all(32 <= size <= 8192 and size & (size - 1) == 0 for size in sizes)
    assert sum(sizes) // 32 * hold == count - count % hold


@both_twins
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bits": 0}, "bits must lie within 1 and 8, got 0"),
        ({"bits": 9}, "bits must lie within 1 and 8, got 9"),
        ({"iterations": 0}, "iterations must be 1 or more, got 0"),
        ({"sizes": torch.tensor([60, -20])}, "sizes must be 0 or more"),
        ({"sizes": torch.tensor([2**31 - 40, 40])}, "add up to less than 2"),
        ({"sizes": torch.tensor([40, 1])}, "values has 40 elements, expected 41"),
        ({"signs": torch.tensor([1])}, "signs has 1 entries, expected 2"),
        ({"noises": NO_SALTS}, "noises has 0 entries, expected 2"),
        ({"free": torch.zeros(8, dtype=torch.int64)}, "free has 8 elements, expected 256"),
        ({"free": torch.full((256,), 32)}, r"expected a place within \[0, 32\)"),
        ({"sent": torch.ones(32).bool()}, "sent has 32 elements, expected 16352"),
        ({"sent": torch.arange(16352) >= 32}, "sent must hold one of the 32 coefficients"),
    ],
)
def test_what_does_not_fit_is_refused(twin, changed, words):
    given = {**HADAMARD.drawn([40, 0], 4), **changed}
    with pytest.raises(RuntimeError, match=words):
        twin.rotated_encode(torch.ones(40), **given)


@both_twins
@pytest.mark.parametrize("size", [55, 57])
def test_bytes_that_are_not_as_many_are_refused(twin, size):
    with pytest.raises(RuntimeError, match=f"data has {size} elements, expected 56"):
        twin.rotated_decode(torch.zeros(size).byte(), **HADAMARD.tables([40, 0]), bits=4)


def test_other_types_are_refused():
    given = HADAMARD.drawn([4], 4)
    with pytest.raises(RuntimeError, match="values has dtype"):
        native.rotated_encode(torch.ones(4).double(), **given)
    with pytest.raises(RuntimeError, match="sent has dtype"):
        native.rotated_encode(torch.ones(4), **{**given, "sent": torch.ones(16352)})


def test_what_they_write_is_what_their_schemas_say():
    way = Way(free=True, keep=0.5)
    given = tails(100), way.drawn([100], 4)
    torch.library.opcheck(
        native.rotated_encode.default, given[:1], given[1], test_utils="test_schema"
    )
    data = ops.rotated_encode(given[0], **given[1])
    known = {**way.tables([100]), "bits": 4}
    torch.library.opcheck(native.rotated_decode.default, (data,), known, test_utils="test_schema")
    known |= {"limit": 1.0, "scale": 1.0}
    args = torch.ones(100), 0, [data]
    torch.library.opcheck(native.rotated_add.default, args, known, test_utils="test_schema")
