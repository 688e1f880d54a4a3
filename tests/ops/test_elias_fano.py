import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_compress.codec import EliasFano
from ddp_compress.ops import reference
from ddp_compress.ops.reference.elias_fano import elias_fano_size
from ddp_compress.ops.reference.wire_format import DecodeError

native = torch.ops.ddp_compress
UNUSED = 2**31 - 1

# `on_device` keeps nothing from one example to the next.
on_examples = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
on_a_gpu = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.needs_cuda)], indirect=True
)


def positions(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def plan_of(numel: int, k: int) -> Any:
    return SimpleNamespace(numel=numel, k=k)


def from_hex(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def slots(indices: torch.Tensor, count: int) -> torch.Tensor:
    """A list of positions as kernels on the device keep it."""
    return torch.nn.functional.pad(indices, (0, count - len(indices)), value=UNUSED)


def among_others(data: torch.Tensor, offset: int, device: str) -> torch.Tensor:
    """The same bytes, `offset` bytes behind the start of memory that holds other ones, too."""
    around = torch.full((offset + len(data) + 9,), 0xFF, dtype=torch.uint8)
    around[offset : offset + len(data)] = data
    return around.to("cuda" if device == "cuda" else "cpu")[offset : offset + len(data)]


def assert_device_agrees(on_device, indices, numel, k) -> None:
    """Both ways, however many slots are unused."""
    data = native.elias_fano_encode(indices, numel, k)
    for count in {len(indices), k, k + 3}:
        assert torch.equal(on_device("elias_fano_encode", slots(indices, count), numel, k), data)
    found, status = on_device("elias_fano_decode", data, numel, k)
    assert torch.equal(found, slots(indices, k))
    assert status.tolist() == [len(data)]


def assert_device_finds_the_same(on_device, data, numel, k) -> torch.Tensor:
    """Returns the status that both decoders have."""
    found, status = on_device("elias_fano_decode", data, numel, k)
    expected, expected_status = native.elias_fano_decode(data.cpu(), numel, k)
    assert status.tolist() == expected_status.tolist()
    assert torch.equal(found, slots(expected, k))
    return status


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


@on_examples
@given(messages())
def test_the_device_agrees(on_device, message):
    assert_device_agrees(on_device, *message)


@on_examples
@given(altered(), st.integers(0, 7))
def test_the_device_finds_the_same_error(on_device, device, message, offset):
    data, numel, k = message
    assert_device_finds_the_same(on_device, among_others(data, offset, device), numel, k)


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


@pytest.mark.parametrize(("indices", "numel", "k", "wire"), GOLDEN)
def test_golden_bytes_on_the_device(on_device, indices, numel, k, wire):
    data = on_device("elias_fano_encode", positions(*indices), numel, k)
    assert bytes(data.tolist()).hex() == wire
    assert_device_agrees(on_device, positions(*indices), numel, k)


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


@pytest.mark.parametrize(("wire", "error", "words"), MALFORMED)
def test_the_device_finds_what_is_wrong(on_device, wire, error, words):
    assert assert_device_finds_the_same(on_device, from_hex(wire), 8, 3).tolist() == [error]


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


TILE = 8192  # upper bits that a block works on at once


@pytest.mark.parametrize("bits", [TILE - 1, TILE, TILE + 1, 2 * TILE, 5 * TILE, 11 * TILE + 77])
def test_the_device_agrees_at_the_edges_of_tiles(on_device, bits):
    k = bits // 2 + 1  # at density one, 2 * k - 1 upper bits
    assert_device_agrees(on_device, torch.arange(k, dtype=torch.int32), k, k)
    assert_device_agrees(on_device, torch.arange(k - 1, dtype=torch.int32), k, k)


@pytest.mark.parametrize(
    ("numel", "count", "k"),
    [
        (10**5, 10**3, 1003),
        (2**31 - 1, 10**3, 10**4),
        (10**6, 30_000, 30_000),
        (10**5, 30_000, 50_000),
        (10**5, 0, 50_000),
        (10**5, 1, 50_000),
    ],
)
def test_the_device_agrees_on_long_lists(on_device, numel, count, k):
    indices = random_positions(numel, count)
    assert_device_agrees(on_device, indices, numel, k)
    if count > 0:
        near_the_end = torch.arange(numel - count, numel).int()
        assert_device_agrees(on_device, near_the_end, numel, k)


def test_the_device_finds_errors_far_into_a_message(on_device):
    numel, k = 300_000, 20_000
    data = native.elias_fano_encode(random_positions(numel, 19_900), numel, k)
    generator = torch.Generator().manual_seed(3)
    seen = set()
    for bit in torch.randint(8 * len(data), (20,), generator=generator).tolist():
        bad = data.clone()
        bad[bit // 8] ^= 1 << bit % 8
        seen |= set(assert_device_finds_the_same(on_device, bad, numel, k).tolist())
    assert {DecodeError.NOT_ASCENDING, DecodeError.DIRTY_PADDING} <= seen
    every_bit = torch.full_like(data, 0xFF)
    status = assert_device_finds_the_same(on_device, every_bit, numel, k)
    assert status.tolist() == [DecodeError.DIRTY_PADDING]
    every_bit[-1] = data[-1]
    status = assert_device_finds_the_same(on_device, every_bit, numel, k)
    assert status.tolist() == [DecodeError.TOO_MANY]


def test_the_device_compares_neighbours_of_two_tiles(on_device):
    data = native.elias_fano_encode(torch.arange(TILE, dtype=torch.int32), TILE, TILE)
    data[TILE // 8 - 1] ^= 0b11 << 6  # the last position of a tile becomes the next one's first
    status = assert_device_finds_the_same(on_device, data, TILE, TILE)
    assert status.tolist() == [DecodeError.NOT_ASCENDING]


@pytest.mark.parametrize("low", [-(2**31), 0])
def test_the_device_takes_what_are_no_positions(on_device, low):
    generator = torch.Generator().manual_seed(4)
    indices = torch.randint(low, 2**31, (3000,), generator=generator).int()
    assert len(on_device("elias_fano_encode", indices, 10**4, 2000)) == elias_fano_size(10**4, 2000)


@on_a_gpu
@pytest.mark.parametrize(("numel", "count"), [(10**7, 10**5), (10**8, 10**6), (2 * 10**7, 10**7)])
def test_the_gpu_agrees_on_large_messages(on_device, numel, count):
    indices = random_positions(numel, count)
    assert_device_agrees(on_device, indices, numel, count)
    assert_device_agrees(on_device, indices, numel, count + 1000)


@pytest.mark.parametrize("indices", [(1, 0), (2, 2), (-1,), (0, 8)])
def test_encoder_refuses_what_are_no_positions(indices):
    with pytest.raises(RuntimeError, match="must ascend strictly"):
        native.elias_fano_encode(positions(*indices), 8, 4)


def test_encoder_refuses_more_positions_than_slots():
    with pytest.raises(RuntimeError, match="expected k = 1 between them"):
        native.elias_fano_encode(positions(0, 1), 8, 1)


def test_what_it_writes_is_what_its_schema_says():
    torch.library.opcheck(
        native.elias_fano_encode.default, (positions(0, 5, 6), 8, 3), test_utils="test_schema"
    )
    torch.library.opcheck(
        native.elias_fano_decode.default, (from_hex("4a01"), 8, 3), test_utils="test_schema"
    )
