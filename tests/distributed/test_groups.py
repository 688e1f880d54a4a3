"""The group that a state makes of the user's: for the host's memory, whatever that one is for."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ddp_compress import CompressionState, PeerError
from ddp_compress.recipes import topk
from ddp_compress.transport.groups import backends, check_host_backend, new_group


def through_a_twin(backend: str) -> list[int]:
    group = dist.new_group([0, 2], backend=backend, timeout=timedelta(seconds=7))
    if dist.get_rank() == 1:
        return []
    twin = new_group(group, [0, 2], "gloo", "a name")
    assert backends(twin) == {"cpu": "gloo", "cuda": "gloo"}
    assert twin._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=7)
    given = torch.tensor([dist.get_rank(), 10 + dist.get_rank()])
    found = torch.empty_like(given)
    dist.all_to_all_single(found, given, group=twin)
    return found.tolist()


@pytest.mark.parametrize("backend", ["gloo", "cuda:gloo"])  # the second has none for the host
def test_ranks_meet_over_the_hosts_memory(ranks, backend):
    assert ranks.run(3, through_a_twin, backend) == [[0, 2], [], [10, 12]]


def without_an_interface() -> tuple[str, float]:
    state = CompressionState(nn.Linear(2, 2), topk(0.5))
    start = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setenv("GLOO_SOCKET_IFNAME", "nowhere")
        with pytest.raises(PeerError) as caught:
            state.reduce({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    return str(caught.value), time.monotonic() - start


def test_one_rank_finds_no_way_to_the_others(ranks):
    """It says what to do; the others wait as long as the group has them wait."""
    outcomes = ranks.outcomes(2, without_an_interface, collective_timeout=3.0, limit=30)
    for told, took in (outcome.value for outcome in outcomes):
        assert "export GLOO_SOCKET_IFNAME with the name of the interface" in told
        assert took < 20


def without_gloo() -> str:
    group = dist.new_group([0, 1], backend="cuda:gloo")
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setattr(dist, "is_gloo_available", lambda: False)
        try:
            check_host_backend(group)
        except RuntimeError as error:
            return str(error)
    return ""


def test_a_build_without_gloo_is_told(ranks):
    first, second = ranks.run(2, without_gloo)
    assert not first
    assert "this build of PyTorch has no Gloo" in second
