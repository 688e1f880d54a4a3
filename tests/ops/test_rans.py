import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddp_compress import ops
from ddp_compress.ops import reference
from ddp_compress.ops.reference.wire_format import DecodeError

native = torch.ops.ddp_compress
both_twins = pytest.mark.parametrize("twin", [native, reference], ids=["native", "reference"])


def as_bytes(values) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.uint8)


def random_symbols(shares: torch.Tensor, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shares))
    return torch.multinomial(shares, count, replacement=True, generator=generator).byte()


def entropy_bytes(symbols: torch.Tensor) -> float:
    counts = torch.bincount(symbols).double()
    return float(-torch.special.xlogy(counts, counts / len(symbols)).sum()) / math.log(256)


def table_bytes(symbols: torch.Tensor, alphabet: int) -> int:
    return -(-(alphabet + 12 * (len(symbols.unique()) - 1)) // 8)


@st.composite
def messages(draw):
    """(symbols, alphabet), often skewed: small symbols come from a small range."""
    alphabet = draw(st.integers(2, 65))
    symbol = st.integers(0, draw(st.integers(0, alphabet - 1)))
    symbols = draw(st.lists(symbol, max_size=20)) * draw(st.sampled_from([1, 7, 200]))
    return as_bytes(symbols + draw(st.lists(st.integers(0, alphabet - 1), max_size=20))), alphabet


@st.composite
def altered(draw):
    """(data, count, alphabet) of a message that did not arrive as it was sent."""
    symbols, alphabet = draw(messages())
    data = bytearray(native.rans_encode(symbols, alphabet).tolist())
    for bit in draw(st.lists(st.integers(0, max(0, 8 * len(data) - 1)), max_size=4)):
        if data:
            data[bit // 8] ^= 1 << bit % 8
    data = data[: draw(st.integers(0, len(data)) | st.just(len(data)))]
    data += draw(st.binary(max_size=9))
    return as_bytes(data), max(0, len(symbols) + draw(st.integers(-2, 2))), alphabet


def check_both_decoders(data, count, alphabet):
    found, status = native.rans_decode([data], count, alphabet)
    expected, expected_status = reference.rans_decode([data], count, alphabet)
    assert status.tolist() == expected_status.tolist()
    assert found.dtype == expected.dtype == torch.uint8
    assert found.tolist() == expected.tolist()
    assert int(status) <= len(data)
    assert found.shape == (1, count)
    assert (found < alphabet).all()
    assert status >= 0 or not found.any()


@given(messages(), st.binary(max_size=3))
def test_symbols_survive_and_both_twins_write_the_same_bytes(message, behind):
    symbols, alphabet = message
    data = native.rans_encode(symbols, alphabet)
    assert torch.equal(data, reference.rans_encode(symbols, alphabet))
    for twin in (native, reference):
        followed = torch.cat([data, as_bytes(behind)])
        decoded, status = twin.rans_decode([followed], len(symbols), alphabet)
        assert torch.equal(decoded[0], symbols)
        assert status.tolist() == [len(data)]


@given(altered())
def test_both_twins_find_the_same_error(message):
    check_both_decoders(*message)


@given(st.binary(max_size=40), st.integers(0, 30), st.integers(2, 65))
def test_any_bytes_at_all(data, count, alphabet):
    check_both_decoders(as_bytes(data), count, alphabet)


@given(st.integers(0, 40), st.data())
def test_several_messages_are_read_as_each_alone(count, data):
    """Whole ones, some that are cut off, and bytes of no message at all."""
    alphabet = 65
    bodies = [as_bytes(data.draw(st.binary(max_size=9)))]
    for largest in data.draw(st.lists(st.integers(0, 64), max_size=9)):
        symbols = data.draw(st.lists(st.integers(0, largest), min_size=count, max_size=count))
        body = native.rans_encode(as_bytes(symbols), alphabet)
        bodies.append(body[: data.draw(st.integers(0, len(body)) | st.just(len(body)))])
    alone = [native.rans_decode([body], count, alphabet) for body in bodies]
    for twin in (native, reference):
        found, status = twin.rans_decode(bodies, count, alphabet)
        assert torch.equal(found, torch.cat([symbols for symbols, _ in alone]))
        assert torch.equal(status, torch.cat([each for _, each in alone]))


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 9])
def test_long_messages_of_several_ranks(world_size):
    shares = torch.linspace(0, 1, 17) ** 6  # some symbols are rare, and move two bytes
    symbols = random_symbols(shares, 3000 * world_size).view(world_size, -1)
    bodies = [native.rans_encode(each, 17) for each in symbols]
    found, status = native.rans_decode(bodies, 3000, 17)
    assert torch.equal(found, symbols)
    assert status.tolist() == [len(body) for body in bodies]
    bodies[1] = bodies[1][:-1]
    found, status = native.rans_decode(bodies, 3000, 17)
    assert status[1] == DecodeError.TRUNCATED
    symbols[1] = 0
    assert torch.equal(found, symbols)


GOLDEN = [
    ("", 2, ""),
    ("00", 2, "01"),
    ("3f3f3f", 64, "0000000000000080"),
    ("0001", 2, "ff1f00100002"),
    ("02000202", 3, "fd1f00c4bd04"),
    ("00000000000000000000000000000001", 2, "ff3b003d1015"),
    (
        "000102030405060708090a0b0c0d0e0f",
        16,
        "fffffff00ffff00ffff00ffff00ffff00ffff00ffff00fff0021008000436587a9cbed0f00",
    ),
]


@both_twins
@pytest.mark.parametrize(("symbols", "alphabet", "wire"), GOLDEN)
def test_golden_bytes(twin, symbols, alphabet, wire):
    symbols = as_bytes(bytes.fromhex(symbols))
    assert bytes(twin.rans_encode(symbols, alphabet).tolist()).hex() == wire
    decoded, _ = twin.rans_decode([as_bytes(bytes.fromhex(wire))], len(symbols), alphabet)
    assert torch.equal(decoded[0], symbols)


# Two symbols: 2 bits of which occur, 12 of a frequency, 2 of padding; then the state.
MALFORMED = [
    ("", DecodeError.TRUNCATED),
    ("00", DecodeError.BAD_TABLE),  # no symbol occurs
    ("03", DecodeError.TRUNCATED),  # no frequency
    ("ff3f", DecodeError.BAD_TABLE),  # a frequency of 4096 leaves none for the last
    ("ff5f", DecodeError.DIRTY_PADDING),
    ("05", DecodeError.DIRTY_PADDING),
    ("ff1f000000", DecodeError.TRUNCATED),  # three bytes of state
    ("ff1fffff7f00", DecodeError.BAD_STATE),  # below the range
    ("ff1f00000080", DecodeError.BAD_STATE),  # above it
    ("ff1f00008000", DecodeError.TRUNCATED),  # a byte is drawn
    ("ff1f00000003", DecodeError.BAD_STATE),  # ends elsewhere
]


@both_twins
@pytest.mark.parametrize(("wire", "error"), MALFORMED)
def test_an_error_says_what_is_wrong(twin, wire, error):
    symbols, status = twin.rans_decode([as_bytes(bytes.fromhex(wire))], 2, 2)
    assert status.tolist() == [error]
    assert symbols.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "shares",
    [
        torch.tensor([0.5, 0.5]),
        torch.tensor([0.95, 0.05]),
        torch.tensor([0.999, 0.001]),
        torch.linspace(0, 1, 17) ** 2,
        0.8 ** torch.arange(64),
        torch.ones(64),
    ],
    ids=["even", "skewed", "rare", "17", "geometric", "64"],
)
def test_size_is_near_the_entropy(shares):
    symbols = random_symbols(shares, 100_000)
    data = native.rans_encode(symbols, len(shares))
    most = 1.002 * entropy_bytes(symbols) + table_bytes(symbols, len(shares)) + 8
    assert len(data) <= most
    assert torch.equal(native.rans_decode([data], len(symbols), len(shares))[0][0], symbols)


@pytest.mark.parametrize(
    "counts",
    [
        [1] + 62 * [0] + [200_000],
        [200_000] + 63 * [1],  # shares far below one slot
        63 * [646] + [260],  # shares of 64.6 slots: rounding takes more than there are
        63 * [644] + [390],  # of 64.4: rounding leaves some
        65 * [1],
    ],
)
def test_frequencies_that_do_not_round_to_the_total(counts):
    symbols = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).byte()
    data = native.rans_encode(symbols, 65)
    assert torch.equal(data, reference.rans_encode(symbols, 65))
    assert torch.equal(native.rans_decode([data], len(symbols), 65)[0][0], symbols)


@both_twins
def test_bad_input_is_refused(twin):
    symbols = as_bytes([0, 5])
    for alphabet in (-1, 0, 1, 66):
        with pytest.raises(RuntimeError, match=rf"within \[2, 65\], got {alphabet}"):
            twin.rans_encode(symbols, alphabet)
        with pytest.raises(RuntimeError, match=rf"within \[2, 65\], got {alphabet}"):
            twin.rans_decode([symbols], 2, alphabet)
    with pytest.raises(RuntimeError, match="symbols must lie below the alphabet, 5, got 5"):
        twin.rans_encode(symbols, 5)
    with pytest.raises(RuntimeError, match="count must be 0 or more, got -1"):
        twin.rans_decode([symbols], -1, 5)


def test_symbols_of_another_type_are_refused():
    with pytest.raises(RuntimeError, match="symbols has dtype"):
        native.rans_encode(torch.tensor([0, 1]), 2)


def test_what_it_writes_is_what_its_schema_says():
    symbols = as_bytes([2, 0, 2, 2])
    torch.library.opcheck(native.rans_encode.default, (symbols, 3), test_utils="test_schema")
    torch.library.opcheck(
        native.rans_decode.default, ([ops.rans_encode(symbols, 3)], 4, 3), test_utils="test_schema"
    )
