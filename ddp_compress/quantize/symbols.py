"""Read entropy-coded symbols and means for quantizers, and say what is wrong with them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.ops.reference.wire_format import DecodeError

WORDS = {
    DecodeError.TRUNCATED: "the bytes end before the symbols do",
    DecodeError.DIRTY_PADDING: "an unused bit is set; expected only zeros there",
    DecodeError.BAD_TABLE: "the symbols' frequencies leave none for some symbol",
    DecodeError.BAD_STATE: "the symbols do not end in the state expected after the last",
}


def most_bytes(count: int, alphabet: int) -> int:
    """The most bytes that ``ops.rans_encode`` gives: a table, a state, and symbols alike often.

    Example:
        >>> most_bytes(1000, alphabet=3)
        211
    """
    table, state = alphabet + 12 * (alphabet - 1), 32
    symbols = math.ceil(1.02 * count * math.log2(alphabet))  # counts are rounded to 4096ths
    return (table + 7 + state + symbols + 7) // 8


def read_symbols(
    name: str, bodies: Sequence[Tensor], count: int, alphabet: int
) -> tuple[Tensor, list[int]]:
    """Symbols [W, count] uint8 from the beginning of W bodies, and the bytes that each took.

    Args:
        name: whose symbols they are.
        bodies: W tensors [B] uint8, at least one.
        count: symbols to read of each.
        alphabet: as encoded.

    Raises:
        ValueError: these are no such symbols.

    Example:
        >>> read_symbols("levels", [torch.tensor([4], dtype=torch.uint8)], count=2, alphabet=3)
        (tensor([[2, 2]], dtype=torch.uint8), [1])
    """
    symbols, status = ops.rans_decode(bodies, count, alphabet)
    used: list[int] = status.tolist()
    for each in used:
        if each < 0:
            raise ValueError(f"{name}: {WORDS[DecodeError(each)]}")
    return symbols, used


def check_size(name: str, data: Tensor, expected: int) -> None:
    """Raise a ValueError unless data [B] are as many bytes as expected.

    Example:
        >>> check_size("means", torch.zeros(3, dtype=torch.uint8), expected=4)
        Traceback (most recent call last):
        ...
        ValueError: means: got 3 bytes, expected 4
    """
    if len(data) != expected:
        raise ValueError(f"{name}: got {len(data)} bytes, expected {expected}")


def read_means(name: str, data: Tensor, count: int) -> Tensor:
    """Means [count] fp32 from the beginning of the data.

    Args:
        name: whose means they are.
        data: [B] uint8.
        count: means to read.

    Raises:
        ValueError: the data are too short, or a mean is not finite.

    Example:
        >>> read_means("means", torch.tensor([0, 0, 128, 63], dtype=torch.uint8), count=1)
        tensor([1.])
    """
    if len(data) < 4 * count:
        raise ValueError(f"{name}: got {len(data)} bytes, expected at least {4 * count}")
    means = data[: 4 * count].clone().view(torch.float32)
    if not means.isfinite().all():
        raise ValueError(f"{name}: a mean is not finite")
    return means
