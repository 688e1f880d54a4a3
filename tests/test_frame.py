"""transport/frame.py: whatever happens to a message's bytes, it is noticed."""

import zlib

import pytest
import torch

from ddp_compress.transport.frame import (
    ANNOUNCED,
    FAILED,
    HEADER_BYTES,
    NONFINITE,
    Header,
    announce,
    body_text,
    padded,
    seal,
    text_body,
    unseal,
)

BODY = torch.arange(1, 38, dtype=torch.uint8)
HEADER = Header(density=0.25, fingerprint=0xBEEF, step=7, length=HEADER_BYTES + len(BODY))


@pytest.mark.parametrize("flags", [0, NONFINITE, FAILED])
@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_frame_opens_to_what_was_sealed(flags, room):
    header = Header(0.25, 0xBEEF, 7, flags, HEADER.length)
    found, body = unseal(padded(seal(header, BODY), HEADER.length + room))
    assert found == header
    assert body.tolist() == BODY.tolist()


def test_golden_bytes():
    header = Header(0.001, 0x1234, 300, NONFINITE, HEADER_BYTES + 2)
    frame = bytes(seal(header, torch.tensor([0xAA, 0xBB], dtype=torch.uint8)).tolist())
    assert frame[4:].hex() == "12000000" + "6f12833a" + "3412" + "2c" + "21" + "aabb"
    assert frame[:4] == zlib.crc32(frame[4:]).to_bytes(4, "little")


def test_an_empty_body():
    found, body = unseal(seal(Header(1.0, 0, 0), BODY[:0]))
    assert found.length == HEADER_BYTES == 16
    assert body.numel() == 0


def test_an_announcement_tells_the_length_alone():
    frame = announce(seal(HEADER, BODY), HEADER_BYTES)
    assert len(frame) == HEADER_BYTES
    found, body = unseal(frame)
    assert found == Header(0.25, 0xBEEF, 7, ANNOUNCED, HEADER.length)
    assert body.numel() == 0


@pytest.mark.parametrize("kind", [padded, announce], ids=["frame", "announcement"])
def test_every_flipped_bit_is_noticed(kind):
    frame = kind(seal(HEADER, BODY), HEADER.length)
    used = HEADER_BYTES if kind is announce else HEADER.length
    for byte in range(used):
        for bit in range(8):
            damaged = frame.clone()
            damaged[byte] ^= 1 << bit
            with pytest.raises(ValueError, match=r"corrupt|version|cut short"):
                unseal(damaged)


def test_every_cut_is_noticed():
    frame = seal(HEADER, BODY)
    for length in range(len(frame)):
        with pytest.raises(ValueError, match=r"cut short|expected at least 16"):
            unseal(frame[:length])


def test_zeros_in_place_of_the_end_are_noticed():
    frame = seal(HEADER, BODY)
    for length in range(len(frame)):
        with pytest.raises(ValueError, match=r"corrupt|version|cut short"):
            unseal(padded(frame[:length], len(frame)))


def test_another_version_is_refused_by_name():
    frame = seal(HEADER, BODY)
    frame[15] = 0x10
    words = "wire version 1, expected 2: all ranks need the same version of ddp_compress"
    with pytest.raises(ValueError, match=words):
        unseal(frame)


def test_words_travel_as_a_body():
    assert body_text(text_body("rank 3: no größe")) == "rank 3: no größe"
