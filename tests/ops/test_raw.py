from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddp_compress.codec import CODECS, Raw, codec_by_name


def slots(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def plan_of(numel: int, k: int) -> Any:
    return SimpleNamespace(numel=numel, k=k)


@given(st.sets(st.integers(0, 2**31 - 2), max_size=30), st.integers(0, 5), st.binary(max_size=5))
def test_positions_survive(chosen, spare, rest):
    plan = plan_of(2**31 - 1, len(chosen) + spare)
    data = Raw().encode(slots(*sorted(chosen)), plan)
    assert len(data) == Raw().size(plan) == 4 * plan.k
    message = torch.cat([data, torch.tensor(list(rest), dtype=torch.uint8)])
    indices, used = Raw().decode(message, plan)
    assert indices.dtype == torch.int32
    assert indices.tolist() == sorted(chosen)
    assert used == len(data)


def test_golden_bytes():
    data = Raw().encode(slots(1, 0x01020304), plan_of(2**30, 3))
    assert bytes(data.tolist()).hex() == "0100000004030201ffffffff"


def test_bytes_need_no_alignment():
    plan = plan_of(9, 2)
    message = torch.cat([torch.zeros(1, dtype=torch.uint8), Raw().encode(slots(3, 8), plan)])
    assert Raw().decode(message[1:], plan)[0].tolist() == [3, 8]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((1, 2), "expected 12 bytes, got 8"),
        ((1, -1, 2), "position 2 follows an unused slot"),
        ((1, 2, 9), r"position 9 lies outside the message; expected it within \[0, 9\)"),
        ((-7, 2, 3), "position -7 lies outside"),
        ((1, 3, 2), "position 2 does not ascend"),
        ((1, 3, 3), "position 3 does not ascend"),
    ],
)
def test_an_error_says_what_is_wrong(values, words):
    with pytest.raises(ValueError, match=f"^raw: .*{words}"):
        Raw().decode(slots(*values).view(torch.uint8), plan_of(9, 3))


def test_encoder_refuses_more_positions_than_slots():
    with pytest.raises(ValueError, match="got 2 positions; expected at most 1"):
        Raw().encode(slots(0, 1), plan_of(9, 1))


def test_codecs_by_name():
    assert {name: codec_by_name(name) for name in CODECS} == CODECS
    with pytest.raises(ValueError, match="one of elias_fano, golomb, raw; got 'huffman'"):
        codec_by_name("huffman")
