"""rANS in plain PyTorch: symbols of a small alphabet, near the entropy of their counts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.wire_format import DecodeError, from_bits, pack, to_bits, unpack

MAX_ALPHABET = 65  # two signs of 32 levels, and zero
TOTAL_BITS = 12
TOTAL = 2**TOTAL_BITS
LOW = 2**23  # states stay within [LOW, 256 * LOW)


def _check_alphabet(alphabet: int) -> None:
    if not 2 <= alphabet <= MAX_ALPHABET:
        raise RuntimeError(f"alphabet must lie within [2, {MAX_ALPHABET}], got {alphabet}")


def _frequencies(symbols: Tensor, alphabet: int) -> Tensor:
    """Frequencies that sum to `TOTAL`: the rounded shares, 1 at least where a symbol occurs.

    The most frequent symbol, the first of equals, takes what the rounding left or lacked.
    """
    counts = torch.bincount(symbols, minlength=alphabet)
    shares = (2 * TOTAL * counts + len(symbols)) // (2 * len(symbols))
    frequencies = torch.where(counts > 0, shares.clamp(min=1), 0)
    frequencies[frequencies.argmax()] += TOTAL - frequencies.sum()
    return frequencies


def _table(frequencies: Tensor) -> Tensor:
    present = frequencies > 0
    fields = to_bits(frequencies[present][:-1] - 1, TOTAL_BITS)
    return pack(torch.cat([present.long(), fields.flatten()]))


def rans_encode(symbols: Tensor, alphabet: int) -> Tensor:
    """Encode symbols of a small alphabet near the entropy of their counts.

    A table of frequencies comes first: symbols that do not occur cost one bit, the others 13, but
    for the last. Then a range asymmetric numeral system: one number, the state, holds all symbols.
    From the last symbol to the first, a symbol of frequency `f` that starts at `c` among the 4096
    slots turns the state `x` into `4096 * (x // f) + x % f + c`; low bytes move out before, so
    that the state stays within `[2**23, 2**31)`. One symbol alone needs no state.

    Args:
        symbols: `[K]` uint8, all below `alphabet`.
        alphabet: how many symbols there are, 2 to 65.

    Returns:
        `[B]` uint8, where `B` depends on the symbols; no bytes where `K = 0`.

    Raises:
        RuntimeError: the alphabet or a symbol is too large.

    Source:
        J. Duda, "Asymmetric numeral systems", 2013.

    Example:
        >>> rans_encode(torch.tensor([2, 0, 2, 2], dtype=torch.uint8), alphabet=3)
        tensor([253,  31,   0, 196, 189,   4], dtype=torch.uint8)
        >>> rans_encode(torch.tensor([2, 2, 2], dtype=torch.uint8), alphabet=3)
        tensor([4], dtype=torch.uint8)
    """
    _check_alphabet(alphabet)
    if not len(symbols):
        return host.empty(0, dtype=torch.uint8)
    if int(symbols.max()) >= alphabet:
        raise RuntimeError(
            f"symbols must lie below the alphabet, {alphabet}, got {int(symbols.max())}"
        )
    table = _frequencies(symbols, alphabet)
    frequencies, starts = table.tolist(), (table.cumsum(0) - table).tolist()
    if TOTAL in frequencies:
        return _table(table)
    state, stream = LOW, []
    for symbol in reversed(symbols.tolist()):
        frequency = frequencies[symbol]
        while state >= (LOW // TOTAL << 8) * frequency:
            stream.append(state % 256)
            state //= 256
        state = TOTAL * (state // frequency) + state % frequency + starts[symbol]
    stream += state.to_bytes(4, "big")
    return torch.cat([_table(table), host.tensor(stream[::-1], dtype=torch.uint8)])


def _read_table(data: Tensor, alphabet: int) -> tuple[Tensor, int] | DecodeError:
    """The frequencies and the bytes that they took."""
    bits = unpack(data[: (alphabet + TOTAL_BITS * alphabet) // 8 + 1])
    present = bits[:alphabet]
    if len(present) < alphabet:
        return DecodeError.TRUNCATED
    occurring = present.nonzero().flatten()
    if not len(occurring):
        return DecodeError.BAD_TABLE
    end = alphabet + TOTAL_BITS * (len(occurring) - 1)
    if len(bits) < end:
        return DecodeError.TRUNCATED
    frequencies = host.zeros(alphabet, dtype=torch.int64)
    frequencies[occurring[:-1]] = from_bits(bits[alphabet:end].view(-1, TOTAL_BITS)) + 1
    left = TOTAL - int(frequencies.sum())
    if left <= 0:
        return DecodeError.BAD_TABLE
    frequencies[occurring[-1]] = left
    used = -(-end // 8)
    if bits[end : 8 * used].any():
        return DecodeError.DIRTY_PADDING
    return frequencies, used


def _read_symbols(
    data: list[int], count: int, table: Tensor
) -> tuple[list[int], int] | DecodeError:
    """The symbols and the bytes that they took."""
    frequencies, starts = table.tolist(), (table.cumsum(0) - table).tolist()
    slots = host.arange(len(table)).repeat_interleave(table).tolist()
    if len(data) < 4:
        return DecodeError.TRUNCATED
    state, used = int.from_bytes(data[:4], "little"), 4
    if not LOW <= state < 256 * LOW:
        return DecodeError.BAD_STATE
    symbols = []
    for _ in range(count):
        slot = state % TOTAL
        symbol = slots[slot]
        symbols.append(symbol)
        state = frequencies[symbol] * (state // TOTAL) + slot - starts[symbol]
        while state < LOW:
            if used == len(data):
                return DecodeError.TRUNCATED
            state = 256 * state + data[used]
            used += 1
    return (symbols, used) if state == LOW else DecodeError.BAD_STATE


def _decode(data: Tensor, count: int, alphabet: int) -> tuple[list[int], int] | DecodeError:
    """The symbols of one message and the bytes read."""
    if count == 0:
        return [], 0
    table = _read_table(data, alphabet)
    if isinstance(table, DecodeError):
        return table
    frequencies, table_bytes = table
    if TOTAL in frequencies:
        return [int(frequencies.argmax())] * count, table_bytes
    found = _read_symbols(data[table_bytes:].tolist(), count, frequencies)
    if isinstance(found, DecodeError):
        return found
    symbols, used = found
    return symbols, table_bytes + used


def rans_decode(messages: Sequence[Tensor], count: int, alphabet: int) -> tuple[Tensor, Tensor]:
    """Decode what `rans_encode` wrote, W messages of K symbols each; nothing in them is trusted.

    Checked in this order: the table is there, some symbol occurs, the frequencies are there and
    leave some for the last, the padding is zero; then the first state is there and in its range,
    every byte drawn is there, and the last state is the encoder's first.

    Args:
        messages: W tensors `[B]` uint8, at least one; bytes after a message are not looked at.
        count: symbols of a message, K.
        alphabet: as encoded.

    Returns:
        Symbols `[W, K]` uint8 and statuses `[W]` int64: the bytes read, or a negative
        `DecodeError`, where symbols are 0.

    Raises:
        RuntimeError: the count is negative, or the alphabet too large.

    Source:
        J. Duda, "Asymmetric numeral systems", 2013.

    Example:
        >>> data = torch.tensor([253, 31, 0, 196, 189, 4], dtype=torch.uint8)
        >>> rans_decode([data, data[:5]], count=4, alphabet=3)
        (tensor([[2, 0, 2, 2],
                [0, 0, 0, 0]], dtype=torch.uint8), tensor([ 6, -1]))
    """
    _check_alphabet(alphabet)
    if count < 0:
        raise RuntimeError(f"count must be 0 or more, got {count}")
    symbols, status = [], []
    for data in messages:
        found = _decode(data, count, alphabet)
        each, used = ([0] * count, int(found)) if isinstance(found, DecodeError) else found
        symbols.append(each)
        status.append(used)
    return host.tensor(symbols, dtype=torch.uint8), host.tensor(status, dtype=torch.int64)
