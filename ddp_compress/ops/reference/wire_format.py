"""What the bytes on the wire mean: the twin of csrc/wire_format.h, which tells the layout."""

from enum import IntEnum

import torch
from torch import Tensor

from ddp_compress.ops import host


class DecodeError(IntEnum):
    """Why a decoder gave up: its status instead of the bytes read."""

    TRUNCATED = -1
    OUT_OF_RANGE = -2
    NOT_ASCENDING = -3
    TOO_MANY = -4
    DIRTY_PADDING = -5
    BAD_TABLE = -6
    BAD_STATE = -7
    BAD_VALUES = -8


def to_bits(numbers: Tensor, width: int) -> Tensor:
    """Spread each number over `width` bits, the lowest first.

    Args:
        numbers: `[...]`, any integer dtype, within `[0, 2**width)`.
        width: bits a number.

    Returns:
        `[..., width]` int64 of 0 and 1.

    Example:
        >>> to_bits(torch.tensor([6, 1]), 3)
        tensor([[0, 1, 1],
                [1, 0, 0]])
    """
    places = torch.arange(width, dtype=torch.int64, device=numbers.device)
    return numbers.unsqueeze(-1) >> places & 1


def from_bits(bits: Tensor) -> Tensor:
    """Undo `to_bits`: the numbers whose bits the last dimension holds, int64.

    Example:
        >>> from_bits(torch.tensor([[0, 1, 1], [1, 0, 0]]))
        tensor([6, 1])
    """
    places = torch.arange(bits.shape[-1], dtype=torch.int64, device=bits.device)
    return (bits << places).sum(-1)


def pack(bits: Tensor) -> Tensor:
    """Pack bits into bytes, padded with zeros to a whole byte.

    Args:
        bits: `[B]` int64 of 0 and 1.

    Returns:
        `[ceil(B / 8)]` uint8.

    Example:
        >>> pack(torch.tensor([0, 1, 1]))
        tensor([6], dtype=torch.uint8)
    """
    padded = torch.nn.functional.pad(bits, (0, -bits.numel() % 8))
    return from_bits(padded.view(-1, 8)).to(torch.uint8)


def unpack(data: Tensor) -> Tensor:
    """Undo `pack`: the `8 * data.numel()` bits of `data`, int64.

    Example:
        >>> unpack(torch.tensor([6], dtype=torch.uint8))
        tensor([0, 1, 1, 0, 0, 0, 0, 0])
    """
    return to_bits(data.long(), 8).flatten()


def decoded(indices: Tensor | list[int], status: int) -> tuple[Tensor, Tensor]:
    """Shape a decoder's result as the native ops do: int32 indices and an int64 status of `[1]`.

    Example:
        >>> decoded([], DecodeError.TRUNCATED)
        (tensor([], dtype=torch.int32), tensor([-1]))
    """
    found = torch.as_tensor(indices, dtype=torch.int32, device="cpu")
    return found, host.tensor([int(status)], dtype=torch.int64)
