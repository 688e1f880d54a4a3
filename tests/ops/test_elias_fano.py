import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddp_compress import reference
from ddp_compress.codec import EliasFano
from ddp_compress.reference.elias_fano import elias_fano_size
from ddp_compress.reference.wire_format import DecodeError

native = torch.ops.ddp_compress


def positions(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def plan_of(numel: int, k: int) -> Any:
    return SimpleNamespace(numel=numel, k=k)


def from_hex(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def random_positions(numel: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(numel + count)
    chosen = torch.randint(numel, (2 * count,), generator=generator).unique()
    order = torch.randperm(len(chosen), generator=generator)[:count]
    return chosen[order].sort().values.int()


def entropy(density: float) -> float:
    """Bits a position of a random mask."""
    rest = 1 - density
    return -math.log2(density) - rest / density * math.log2(rest)


@st.composite
def messages(draw):
    """(indices, numel, k)"""
    numel = draw(st.sampled_from([0, 1, 2, 7, 64, 65, 500, 2**20, 2**31 - 1]))
    if numel == 0:
        return positions(), 0, 0
    chosen = draw(st.sets(st.integers(0, numel - 1), max_size=80))
    spare = draw(st.integers(0, 70))
    return positions(*sorted(chosen)), numel, min(numel, len(chosen) + spare)


@st.composite
def altered(draw):
    """(data, numel, k) of a message that did not arrive as it was sent."""
    indices, numel, k = draw(messages())
    data = bytearray(native.elias_fano_encode(indices, numel, k).tolist())
    for bit in draw(st.lists(st.integers(0, max(0, 8 * len(data) - 1)), max_size=4)):
        if data:
            data[bit // 8] ^= 1 << bit % 8
    data = data[: draw(st.integers(0, len(data)) | st.just(len(data)))]
    data += draw(st.binary(max_size=9))
    return torch.tensor(list(data), dtype=torch.uint8), numel, k


@given(messages())
def test_positions_survive_and_both_twins_write_the_same_bytes(message):
    indices, numel, k = message
    data = native.elias_fano_encode(indices, numel, k)
    assert torch.equal(data, reference.elias_fano_encode(indices, numel, k))
    assert len(data) == elias_fano_size(numel, k)
    for twin in (native, reference):
        decoded, status = twin.elias_fano_decode(data, numel, k)
        assert decoded.dtype == torch.int32
        assert decoded.tolist() == indices.tolist()
        assert status.tolist() == [len(data)]


@given(altered())
def test_both_twins_find_the_same_error(message):
    found, status = native.elias_fano_decode(*message)
    expected, expected_status = reference.elias_fano_decode(*message)
    assert status.tolist() == expected_status.tolist()
    assert found.tolist() == expected.tolist()


@given(altered())
def test_what_the_decoder_lets_through_is_well_formed(message):
    data, numel, k = message
    plan = plan_of(numel, k)
    _, status = native.elias_fano_decode(data, numel, k)
    if status < 0:
        with pytest.raises(ValueError, match=r"^elias_fano: "):
            EliasFano().decode(data, plan)
        return
    indices, used = EliasFano().decode(data, plan)
    assert used == EliasFano().size(plan)
    assert len(indices) <= k
    assert indices.tolist() == sorted({i for i in indices.tolist() if 0 <= i < numel})
    # One set of positions has one encoding.
    assert torch.equal(data[:used], EliasFano().encode(indices, plan))


GOLDEN = [
    ((), 0, 0, ""),
    ((), 9, 0, ""),
    ((0,), 1, 1, "01"),
    ((), 1, 1, "00"),
    ((0, 5, 6), 8, 3, "4a01"),
    ((5,), 8, 3, "2100"),
    (tuple(range(8)), 8, 8, "5555"),
    ((2**31 - 2,), 2**31 - 1, 1, "feffffbf"),
    ((3, 14, 159, 265, 358, 979), 1000, 6, "03c727619eae41"),
]


@pytest.mark.parametrize("twin", [native, reference], ids=["native", "reference"])
@pytest.mark.parametrize(("indices", "numel", "k", "wire"), GOLDEN)
def test_golden_bytes(twin, indices, numel, k, wire):
    assert bytes(twin.elias_fano_encode(positions(*indices), numel, k).tolist()).hex() == wire
    assert twin.elias_fano_decode(from_hex(wire), numel, k)[0].tolist() == list(indices)


# n = 8, k = 3: one low bit each, then six upper bits, then seven bits of padding.
MALFORMED = [
    ("4a", DecodeError.TRUNCATED, "expected 2 bytes, got 1"),
    ("4a03", DecodeError.DIRTY_PADDING, "an unused bit is set"),
    ("ca01", DecodeError.TOO_MANY, "at most 3"),
    ("0c00", DecodeError.DIRTY_PADDING, "an unused bit is set"),
    ("3800", DecodeError.NOT_ASCENDING, "do not ascend"),
    ("0001", DecodeError.OUT_OF_RANGE, "below 8"),
]


@pytest.mark.parametrize(("wire", "error", "words"), MALFORMED)
def test_an_error_says_what_is_wrong(wire, error, words):
    for twin in (native, reference):
        indices, status = twin.elias_fano_decode(from_hex(wire), 8, 3)
        assert status.tolist() == [error]
        assert len(indices) == 0
    with pytest.raises(ValueError, match=f"^elias_fano: .*{words}"):
        EliasFano().decode(from_hex(wire), plan_of(8, 3))


@given(st.integers(1, 2**31 - 1), st.data())
def test_size_is_the_least_of_all_low_bits(numel, data):
    k = data.draw(st.integers(1, numel))
    bits = min(k * low + k + ((numel - 1) >> low) for low in range(32))
    assert elias_fano_size(numel, k) == -(-bits // 8)


@pytest.mark.parametrize("numel", [10**6, 10**7])
@pytest.mark.parametrize("density", [0.001, 0.01])
def test_bits_a_position(numel, density):
    k = round(numel * density)
    plan = plan_of(numel, k)
    indices = random_positions(numel, k)
    data = EliasFano().encode(indices, plan)
    assert len(data) == EliasFano().size(plan)
    assert 8 * len(data) / k <= 1.06 * entropy(density)
    assert torch.equal(EliasFano().decode(data, plan)[0], indices)


def test_density_one():
    indices = torch.arange(100_003, dtype=torch.int32)
    data = native.elias_fano_encode(indices, 100_003, 100_003)
    assert torch.equal(native.elias_fano_decode(data, 100_003, 100_003)[0], indices)


@pytest.mark.parametrize("indices", [(1, 0), (2, 2), (-1,), (0, 8)])
def test_encoder_refuses_what_are_no_positions(indices):
    with pytest.raises(RuntimeError, match="must ascend strictly"):
        native.elias_fano_encode(positions(*indices), 8, 4)


def test_encoder_refuses_more_positions_than_slots():
    with pytest.raises(RuntimeError, match="expected k = 1 between them"):
        native.elias_fano_encode(positions(0, 1), 8, 1)


def test_opcheck():
    torch.library.opcheck(native.elias_fano_encode.default, (positions(0, 5, 6), 8, 3))
    torch.library.opcheck(native.elias_fano_decode.default, (from_hex("4a01"), 8, 3))
