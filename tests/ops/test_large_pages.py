from types import SimpleNamespace

import pytest
import torch

from ddp_compress.ops import large_pages
from ddp_compress.ops.large_pages import in_large_pages

SIZE = 1 << 21


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, int, int]]:
    """What the system is asked for: the first byte, how many, the advice."""
    calls: list[tuple[int, int, int]] = []

    def madvise(begin, length, advice) -> None:
        calls.append((begin.value, length.value, advice))

    monkeypatch.setattr(large_pages, "_page_size", lambda: SIZE)
    monkeypatch.setattr(large_pages, "_libc", lambda: SimpleNamespace(madvise=madvise))
    return calls


def test_whole_large_pages_within_a_tensor_are_asked_for(asked):
    tensor = torch.empty(3 * SIZE)
    assert in_large_pages(tensor) is tensor
    ((begin, length, advice),) = asked
    assert advice == 14
    assert begin % SIZE == length % SIZE == 0
    assert tensor.data_ptr() <= begin < tensor.data_ptr() + SIZE
    assert begin + length <= tensor.data_ptr() + tensor.nbytes < begin + length + SIZE


def test_a_small_tensor_is_left_alone(asked):
    in_large_pages(torch.empty(SIZE // 4))
    in_large_pages(torch.empty(0))
    assert not asked


def test_where_there_are_none_nothing_is_asked_for(asked, monkeypatch):
    monkeypatch.setattr(large_pages, "_page_size", lambda: 0)
    in_large_pages(torch.empty(3 * SIZE))
    assert not asked


def test_the_real_request_leaves_memory_as_it_is():
    tensor = torch.arange(3 * SIZE)
    assert torch.equal(in_large_pages(tensor), torch.arange(3 * SIZE))
