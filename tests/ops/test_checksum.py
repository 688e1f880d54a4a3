import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddp_compress import ops, reference

native = torch.ops.ddp_compress


def to_tensor(data: bytes | bytearray) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


@given(st.binary(max_size=70))
def test_both_twins_agree(data):
    expected = reference.checksum(to_tensor(data))
    found = native.checksum(to_tensor(data))
    assert found.dtype == expected.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    assert 0 <= int(found) < 2**32


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0x92CA2F0E),
        (b"\0", 0xE41857C5),
        (b"\1\2\3", 0x96F7FE1B),
        (b"\0\0\0\0", 0xF43DC586),
        (b"gradient", 0x6A9C2613),
    ],
)
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


def test_opcheck():
    torch.library.opcheck(native.checksum.default, (to_tensor(b"gradient"),))
