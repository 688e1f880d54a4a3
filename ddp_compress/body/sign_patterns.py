"""Patterns of signs that many kernels share."""

from math import log2

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.ops import host
from ddp_compress.ops.reference.wire_format import pack, unpack
from ddp_compress.quantize.symbols import most_bytes, read_symbols

TABLE_BITS = 13  # of a symbol in rANS's table of frequencies
WORD_BITS = 32  # of a pattern: with the number of those before, they fit into 63
MOST_PATTERNS = 32  # each has two symbols of the at most 65 of rANS, one for either sign


def unused_bytes(m: int) -> int:
    """The most bytes of patterns of m elements that stand for no kernel."""
    return 1 + (MOST_PATTERNS * m + 7) // 8 + most_bytes(0, 2 * MOST_PATTERNS)


def encode_patterns(signs: Tensor) -> tuple[Tensor, Tensor]:
    """Patterns of kernels of one size, as bytes, and for which of the kernels they stand.

    Args:
        signs: [n, m] bool, True for a minus.

    Returns:
        The number of patterns less 1, the patterns, the symbols, no bytes at all where no pattern
        is shared; and indices into ``signs``.
    """
    n, m = signs.shape
    nothing = host.empty(0, dtype=torch.uint8), host.empty(0, dtype=torch.int64)
    if not n:
        return nothing
    turned = signs[:, 0]
    patterns, number = _distinct(signs ^ turned[:, None])
    counts = torch.bincount(number).tolist()
    shared = [
        pattern
        for pattern, count in sorted(enumerate(counts), key=lambda pair: -pair[1])
        if count * (m - 1 - log2(n / count)) > m + 2 * TABLE_BITS
    ][:MOST_PATTERNS]
    if not shared:
        return nothing
    symbol = host.full((len(patterns),), -1, dtype=torch.int64).index_copy_(
        0, host.tensor(shared, dtype=torch.int64), 2 * host.arange(len(shared))
    )[number]
    chosen = (symbol >= 0).nonzero().flatten()
    symbols = (symbol + turned)[chosen].byte()
    head = host.tensor([len(shared) - 1], dtype=torch.uint8)
    bits = pack(patterns[shared].long().flatten())
    return torch.cat([head, bits, ops.rans_encode(symbols, 2 * len(shared))]), chosen


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of bits [n, m] in their order, and every row's number among them [n].

    Words are sorted in place of rows: many times faster than `unique` in a dimension.
    """
    number = host.zeros(len(rows), dtype=torch.int64)
    for part in rows.split(WORD_BITS, dim=1):
        weights = 2.0 ** host.arange(part.shape[1], dtype=torch.float64).flip(0)
        words = (number << WORD_BITS) + (part.double() @ weights).long()  # exact
        number = words.unique(return_inverse=True)[1]
    distinct = rows.new_empty(int(number.max()) + 1, rows.shape[1])
    return distinct.index_copy_(0, number, rows), number


def decode_patterns(data: Tensor, n: int, m: int) -> tuple[Tensor, int]:
    """The signs [n, m] and the bytes they took: `encode_patterns` undone, trusting nothing."""
    if not n:
        return host.empty(0, m, dtype=torch.bool), 0
    count = int(data[0]) + 1 if len(data) else 0
    if not 1 <= count <= MOST_PATTERNS:
        raise ValueError(f"patterns: {count} patterns, expected 1 to {MOST_PATTERNS}")
    end = 1 + (count * m + 7) // 8
    bits = unpack(data[1:end])
    if len(data) < end:
        raise ValueError(f"patterns: got {len(data)} bytes, expected at least {end} for patterns")
    if bits[count * m :].any():
        raise ValueError("patterns: an unused bit is set; expected only zeros there")
    (symbols,), (used,) = read_symbols("patterns", [data[end:]], n, 2 * count)
    patterns = bits[: count * m].view(count, m).bool()
    return patterns[symbols.long() // 2] ^ (symbols % 2).bool()[:, None], end + used
