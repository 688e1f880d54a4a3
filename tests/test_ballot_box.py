"""Ballots as bytes, and the count of votes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress import codec
from ddp_compress.exchange import ballot
from ddp_compress.exchange.ballot_box import _edge
from ddp_compress.recipe import Codec

SIZES = [40, 0, 3, 57]
NUMEL = sum(SIZES)
BOUNDS = torch.tensor([0, *SIZES]).cumsum(0)

every_codec = pytest.mark.parametrize("name", ["golomb", "elias_fano", "raw"])
positions = st.sets(st.integers(0, NUMEL - 1)).map(lambda found: ints(*sorted(found)))


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def there_and_back(ours: Tensor, last: Tensor | None, how: Codec) -> Tensor:
    return ballot.decode(ballot.encode(ours, last, BOUNDS, how), last, BOUNDS, how)


@every_codec
@given(positions, st.none() | positions)
def test_a_ballot_comes_back(name, ours, last):
    found = there_and_back(ours, last, codec.codec_by_name(name))
    assert found.dtype == torch.int32
    assert torch.equal(found, ours)


@given(positions)
def test_a_whole_ballot_can_be_read_whatever_is_known(ours):
    """As when one rank alone has forgotten the last ballots."""
    body = ballot.encode(ours, None, BOUNDS, codec.codec_by_name("golomb"))
    for known in (None, ints(), ints(3, 5)):
        assert torch.equal(ballot.decode(body, known, BOUNDS, codec.codec_by_name("golomb")), ours)


def test_changes_to_an_unknown_ballot_are_refused():
    body = ballot.encode(ints(1, 2), ints(1, 3), BOUNDS, codec.codec_by_name("golomb"))
    with pytest.raises(ValueError, match="changes to a ballot that this rank does not know; load"):
        ballot.decode(body, None, BOUNDS, codec.codec_by_name("golomb"))


def test_changes_to_another_ballot_are_refused_where_they_do_not_fit():
    body = ballot.encode(ints(1, 2, 9), ints(1, 3), BOUNDS, codec.codec_by_name("golomb"))
    with pytest.raises(ValueError, match="a position is added that was there already"):
        ballot.decode(body, ints(2, 9), BOUNDS, codec.codec_by_name("golomb"))


@every_codec
@given(st.binary(max_size=60), st.none() | positions)
def test_any_bytes_are_a_ballot_or_a_value_error(name, data, last):
    check_bytes(data, last, codec.codec_by_name(name))


@every_codec
@given(positions, positions, st.integers(0, 99), st.integers(0, 255))
def test_damaged_ballots_are_ballots_or_a_value_error(name, ours, last, place, byte):
    how = codec.codec_by_name(name)
    data = bytes(ballot.encode(ours, last, BOUNDS, how).tolist())
    at = place % len(data)
    check_bytes(data[:at], last, how)
    check_bytes(data[:at] + bytes([byte]) + data[at + 1 :], last, how)


def check_bytes(data: bytes, last: Tensor | None, how: Codec) -> None:
    body = torch.tensor(list(data), dtype=torch.uint8)
    try:
        found = ballot.decode(body, last, BOUNDS, how)
    except ValueError:
        return
    assert (found.diff() > 0).all()
    assert ((found >= 0) & (found < NUMEL)).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(0, 90))
def test_the_edge_bin_holds_the_kth_largest(histogram, k):
    edge, places = _edge(torch.tensor(histogram, dtype=torch.int32), min(k, sum(histogram)))
    above = histogram[edge + 1 :]
    assert sum(above) + places == min(k, sum(histogram))
    assert 0 <= places <= (histogram[edge] if edge < len(histogram) else 0)
