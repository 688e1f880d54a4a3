"""Elias-Fano in plain PyTorch: the size of a message is known before its positions are."""

from functools import lru_cache

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.wire_format import (
    DecodeError,
    decoded,
    from_bits,
    pack,
    to_bits,
    unpack,
)


def _end(numel: int, k: int, low: int) -> int:
    return k * low + k + ((numel - 1) >> low)


@lru_cache(maxsize=1024)
def _low_bits(numel: int, k: int) -> int:
    return min(range(32), key=lambda low: _end(numel, k, low))


def elias_fano_size(numel: int, k: int) -> int:
    """Count the bytes of an Elias-Fano message; its content does not matter.

    With `n = numel`, the number of low bits `l` is the one in `[0, 31]` of least total size:
    `bits = k * l + k + ((n - 1) >> l)`, about `k * (2 + log2(n / k))`.

    Args:
        numel: positions lie within `[0, numel)`.
        k: most positions the message can hold.

    Returns:
        Bytes; 0 where `numel` or `k` is 0.

    Source:
        P. Elias, "Efficient storage and retrieval by content and address of static files", 1974;
        R. Fano, "On the number of bits required to implement an associative memory", 1971.

    Example:
        >>> elias_fano_size(numel=10_000_000, k=10_000)  # 11.95 bits a position
        14942
    """
    if numel <= 0 or k <= 0:
        return 0
    return (_end(numel, k, _low_bits(numel, k)) + 7) // 8


def elias_fano_encode(indices: Tensor, numel: int, k: int) -> Tensor:
    """Encode ascending positions in a number of bytes that `numel` and `k` alone decide.

    Of each position, `l` low bits are stored as they are. The high bits ascend, so they are
    stored in unary: bit `i + (indices[i] >> l)` of the upper part is set.

    Args:
        indices: `[K]` int32, strictly ascending within `[0, numel)`, at most `k` of them.
        numel: positions of the tensor.
        k: slots of the message; the unused ones are zero.

    Returns:
        `[elias_fano_size(numel, k)]` uint8.

    Source:
        Elias 1974; Fano 1971.

    Example:
        >>> elias_fano_encode(torch.tensor([0, 5, 6], dtype=torch.int32), numel=8, k=3)
        tensor([74,  1], dtype=torch.uint8)
    """
    if numel <= 0 or k <= 0:
        return host.empty(0, dtype=torch.uint8)
    low = _low_bits(numel, k)
    count = indices.numel()
    lows = host.zeros(k, low, dtype=torch.int64)
    lows[:count] = to_bits(indices & (2**low - 1), low)
    upper = host.zeros(_end(numel, k, low) - k * low, dtype=torch.int64)
    upper[host.arange(count) + (indices >> low)] = 1
    return pack(torch.cat([lows.flatten(), upper]))


def elias_fano_decode(data: Tensor, numel: int, k: int) -> tuple[Tensor, Tensor]:
    """Decode what `elias_fano_encode` wrote; nothing in `data` is trusted.

    Checked in this order: enough bytes, zero padding, at most `k` positions, zero unused slots,
    ascending positions, positions below `numel`.

    Args:
        data: `[B]` uint8; bytes after the message are not looked at.
        numel: positions of the tensor, as encoded.
        k: slots of the message, as encoded.

    Returns:
        Positions `[K]` int32, ascending, and a status `[1]` int64: the bytes read, or a negative
        `DecodeError` and no positions.

    Source:
        Elias 1974; Fano 1971.

    Example:
        >>> elias_fano_decode(torch.tensor([74, 1], dtype=torch.uint8), numel=8, k=3)
        (tensor([0, 5, 6], dtype=torch.int32), tensor([2]))
    """
    size = elias_fano_size(numel, k)
    if data.numel() < size:
        return decoded([], DecodeError.TRUNCATED)
    if size == 0:
        return decoded([], 0)
    low = _low_bits(numel, k)
    end = _end(numel, k, low)
    bits = unpack(data[:size])
    if bits[end:].any():
        return decoded([], DecodeError.DIRTY_PADDING)

    upper = bits[k * low : end].nonzero().flatten()
    count = upper.numel()
    if count > k:
        return decoded([], DecodeError.TOO_MANY)
    lows = bits[: k * low].view(k, low)
    if lows[count:].any():
        return decoded([], DecodeError.DIRTY_PADDING)
    indices = (upper - host.arange(count)) << low | from_bits(lows[:count])
    if not (indices.diff() > 0).all():
        return decoded([], DecodeError.NOT_ASCENDING)
    if (indices[-1:] >= numel).any():
        return decoded([], DecodeError.OUT_OF_RANGE)
    return decoded(indices, size)
