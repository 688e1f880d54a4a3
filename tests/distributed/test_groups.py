"""The group that a state makes of the user's: for the host's memory, whatever that one is for."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from ddp_compress.transport.groups import backends, host_twin_of


def through_a_twin(backend: str) -> list[int]:
    group = dist.new_group([0, 2], backend=backend, timeout=timedelta(seconds=7))
    if dist.get_rank() == 1:
        return []
    twin = host_twin_of(group, "a name")
    assert backends(twin) == {"cpu": "gloo", "cuda": "gloo"}
    assert twin._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=7)
    given = torch.tensor([dist.get_rank(), 10 + dist.get_rank()])
    found = torch.empty_like(given)
    dist.all_to_all_single(found, given, group=twin)
    return found.tolist()


@pytest.mark.parametrize("backend", ["gloo", "cuda:gloo"])  # the second has none for the host
def test_ranks_meet_over_the_hosts_memory(ranks, backend):
    assert ranks.run(3, through_a_twin, backend) == [[0, 2], [], [10, 12]]


def test_what_is_to_be_done_where_hosts_do_not_meet(ranks):
    (told,) = ranks.run(1, without_an_interface)
    assert "export GLOO_SOCKET_IFNAME with the name of the interface" in told


def without_an_interface() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "nowhere")
        with pytest.raises(RuntimeError) as caught:
            host_twin_of(None, "another name")
    return str(caught.value)
