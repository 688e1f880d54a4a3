"""ops/host.py: tensors' bytes, without numpy."""

import zlib

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from ddp_compress.ops import host

NUMBERS = torch.arange(24, dtype=torch.int16)
TENSORS = {
    "empty": NUMBERS[:0],
    "one number": NUMBERS[7].clone(),
    "whole": NUMBERS,
    "at an odd address": NUMBERS.view(torch.uint8)[1:20],
    "of two dimensions": NUMBERS.view(4, 6),
    "not contiguous": NUMBERS.view(4, 6).T,
    "every other": NUMBERS[::2],
    "large": torch.arange(100_003).to(torch.uint8),
    "of truths": NUMBERS > 5,
}
every_tensor = pytest.mark.parametrize("data", TENSORS.values(), ids=TENSORS.keys())


def bytes_of(data: torch.Tensor) -> bytes:
    return bytes(data.contiguous().view(-1).view(torch.uint8).tolist())


@every_tensor
def test_bytes_of_a_tensor(data):
    before = data.clone()
    assert host.to_bytes(data) == bytes_of(data)
    assert host.crc32(data) == zlib.crc32(bytes_of(data))
    assert torch.equal(data, before)


@pytest.mark.parametrize("data", [b"", b"a", bytes(range(256)) * 40])
def test_bytes_there_and_back(data):
    made = host.from_bytes(data)
    assert made.dtype == torch.uint8
    assert made.tolist() == list(data)
    assert host.to_bytes(made) == data


def test_what_was_made_of_bytes_lives_on_its_own():
    data = bytearray(b"abc")
    made = host.from_bytes(data)
    data[:] = b"xyz"
    assert host.to_bytes(made) == b"abc"


@pytest.mark.parametrize("read", [host.to_bytes, host.crc32])
def test_a_tensor_without_bytes_on_the_host_is_refused(read):
    with pytest.raises(ValueError, match="a Tensor of 12 bytes on meta"):
        read(torch.empty(3, device="meta"))
    with pytest.raises(ValueError, match="a TwoTensor of 12 bytes on cpu"):
        read(TwoTensor(torch.ones(3), torch.ones(3)))
