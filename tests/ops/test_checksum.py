import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_compress import ops
from ddp_compress.ops import reference

native = torch.ops.ddp_compress
on_a_gpu = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.needs_cuda)], indirect=True
)
# `on_device` keeps nothing from one example to the next.
on_examples = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
GOLDEN = [
    (b"", 0x92CA2F0E),
    (b"\0", 0xE41857C5),
    (b"\1\2\3", 0x96F7FE1B),
    (b"\0\0\0\0", 0xF43DC586),
    (b"gradient", 0x6A9C2613),
]


def to_tensor(data: bytes | bytearray) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


@given(st.binary(max_size=70))
def test_both_twins_agree(data):
    expected = reference.checksum(to_tensor(data))
    found = native.checksum(to_tensor(data))
    assert found.dtype == expected.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    assert 0 <= int(found) < 2**32


@pytest.mark.parametrize(("data", "expected"), GOLDEN)
def test_golden_numbers(data, expected):
    assert ops.checksum(to_tensor(data)).tolist() == [expected]


@given(st.binary(min_size=1, max_size=70), st.data())
def test_every_altered_byte_is_noticed(data, draw):
    altered = bytearray(data)
    altered[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    assert int(ops.checksum(to_tensor(data))) != int(ops.checksum(to_tensor(altered)))


def test_words_that_swap_places_are_noticed():
    there, back = to_tensor(b"abcdefgh"), to_tensor(b"efghabcd")
    assert int(ops.checksum(there)) != int(ops.checksum(back))


def test_zeros_at_the_end_count():
    sums = {int(ops.checksum(torch.zeros(size, dtype=torch.uint8))) for size in range(33)}
    assert len(sums) == 33


def test_a_slice_at_an_odd_byte():
    data = torch.arange(100, dtype=torch.uint8)
    assert int(native.checksum(data[1:])) == int(native.checksum(data[1:].clone()))


def assert_device_agrees(on_device, device, data: torch.Tensor, offset: int) -> None:
    """With bytes that begin some behind an aligned address, among others."""
    around = torch.nn.functional.pad(data, (offset, 9), value=0xFF)
    there = around.cuda() if device == "cuda" else around
    found = on_device("checksum", there[offset : offset + len(data)])
    assert found.dtype == torch.int64
    assert found.tolist() == native.checksum(data).tolist()


def random_bytes(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(256, (size,), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("data", "expected"), GOLDEN)
def test_golden_numbers_on_the_device(on_device, data, expected):
    assert on_device("checksum", to_tensor(data)).tolist() == [expected]


@on_examples
@given(st.binary(max_size=70), st.integers(0, 5))
def test_the_device_agrees(on_device, device, data, offset):
    assert_device_agrees(on_device, device, to_tensor(data), offset)


@pytest.mark.parametrize("size", [8191, 8192, 8193, 8196, 16_384, 100_003])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_the_device_agrees_at_the_edges_of_blocks(on_device, device, size, offset):
    assert_device_agrees(on_device, device, random_bytes(size), offset)


@on_a_gpu
@pytest.mark.parametrize("offset", [0, 3])
def test_the_gpu_agrees_on_large_messages(on_device, device, offset):
    assert_device_agrees(on_device, device, random_bytes(10**8 + 1), offset)


def test_opcheck():
    torch.library.opcheck(native.checksum.default, (to_tensor(b"gradient"),))
