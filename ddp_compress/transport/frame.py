"""A message's bytes: a 16-byte header that lets every rank check every other, then the body.

Little-endian: CRC-32 u32 of all that follows it, length u32 (header included), density f32,
fingerprint u16 of the phase and of all that ranks must share, step u8 (its low bits), version and
flags, four bits each.
"""

import struct
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_compress.ops import host

VERSION = 2  # version 1 had another sum in the place of the CRC-32
NONFINITE = 1  # the sender has a non-finite gradient: the step aborts
FAILED = 2  # the sender could not build its message: the body says why
ANNOUNCED = 4  # only the header is here: the body needs a larger frame

_HEADER = struct.Struct("<IIfHBB")
_SUMMED = struct.Struct("<IfHBB")  # all but the CRC-32 itself
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class Header:
    """What a sender says of itself before its body."""

    density: float
    fingerprint: int
    step: int
    flags: int = 0
    length: int = HEADER_BYTES

    @property
    def setting(self) -> tuple[float, int, int]:
        """What ranks must share."""
        return self.density, self.step, self.fingerprint

    @property
    def words(self) -> str:
        """The same, for people."""
        return (
            f"density {self.density:.6g}, step {self.step} (mod 256), "
            f"recipe, layout, loss scale, sub-model and local steps #{self.fingerprint:04x}"
        )


def seal(header: Header, body: Tensor) -> Tensor:
    """Header and body [B] as one frame: uint8 [16 + B]."""
    tail = (VERSION << 4) | header.flags
    summed = _SUMMED.pack(
        header.length, header.density, header.fingerprint, header.step % 256, tail
    )
    crc = host.crc32(body, zlib.crc32(summed)).to_bytes(4, "little")
    return torch.cat([host.from_bytes(crc + summed), body])


def announce(frame: Tensor, capacity: int) -> Tensor:
    """A frame of ``capacity`` bytes that only tells how long the real one is."""
    _, length, density, fingerprint, step, tail = _HEADER.unpack(
        host.to_bytes(frame[:HEADER_BYTES])
    )
    header = Header(density, fingerprint, step, (tail & 15) | ANNOUNCED, length)
    return padded(seal(header, frame.new_empty(0)), capacity)


def padded(frame: Tensor, capacity: int) -> Tensor:
    """The frame with zeros behind it, ``capacity`` bytes in all."""
    missing = capacity - len(frame)
    return torch.nn.functional.pad(frame, (0, missing)) if missing else frame


def unseal(data: Tensor) -> tuple[Header, Tensor]:
    """Header and body of a padded frame.

    Raises:
        ValueError: the bytes are cut short, altered, or of another version.
    """
    if len(data) < HEADER_BYTES:
        raise ValueError(f"message of {len(data)} bytes, expected at least {HEADER_BYTES}")
    crc, length, density, fingerprint, step, tail = _HEADER.unpack(
        host.to_bytes(data[:HEADER_BYTES])
    )
    version, flags = tail >> 4, tail & 15
    if version != VERSION:
        raise ValueError(
            f"message has wire version {version}, expected {VERSION}: all ranks need the same "
            "version of ddp_compress"
        )
    here = HEADER_BYTES if flags & ANNOUNCED else length
    if not HEADER_BYTES <= here <= len(data):
        raise ValueError(f"message is cut short: {len(data)} bytes, its header says {length}")
    if host.crc32(data[4:here]) != crc:
        raise ValueError("message is corrupt: its CRC-32 does not match its bytes")
    return Header(density, fingerprint, step, flags, length), data[HEADER_BYTES:here]


def text_body(text: str) -> Tensor:
    """Words as a body."""
    return host.from_bytes(text.encode())


def body_text(body: Tensor) -> str:
    """The words of a body."""
    return host.to_bytes(body).decode(errors="replace")
