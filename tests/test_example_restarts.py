"""Where the ranks of `examples/train.py` meet after a restart."""

import pytest
import torch.distributed as dist

import train as example


@pytest.fixture
def torchrun(monkeypatch):
    """What a rank is told by a torchrun that keeps one store for all restarts."""
    store = dist.TCPStore("localhost", 0, is_master=True)

    def tell(restart: int, hosts: int = 1, shared: bool = True, restarts: int = 3) -> None:
        told = {
            "RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port,
            "GROUP_WORLD_SIZE": hosts, "TORCHELASTIC_RESTART_COUNT": restart,
            "TORCHELASTIC_MAX_RESTARTS": restarts, "TORCHELASTIC_USE_AGENT_STORE": shared,
        }  # fmt: skip
        for name, value in told.items():
            monkeypatch.setenv(name, str(value))

    return tell


def test_a_restart_does_not_see_the_addresses_of_the_dead(torchrun, capsys):
    torchrun(restart=0)
    first, *place = example.meeting_place()
    assert place == [0, 2]
    first.set("address of rank 1", "one that nobody listens at")
    again, *_ = example.meeting_place()
    assert again.check(["address of rank 1"]), "all ranks of one start meet"
    torchrun(restart=1)
    later, *_ = example.meeting_place()
    assert not later.check(["address of rank 1"])
    assert capsys.readouterr().err == ""


def test_hosts_that_share_one_store_for_all_restarts_are_told_once(torchrun, capsys):
    """Their torchruns need not have counted alike: ranks must meet all the same."""
    torchrun(restart=0, hosts=2)
    store, *_ = example.meeting_place()
    store.set("address of rank 1", "host1")
    assert "Give torchrun --rdzv-backend=c10d" in capsys.readouterr().err
    torchrun(restart=1, hosts=2)
    later, *_ = example.meeting_place()
    assert later.check(["address of rank 1"])
    assert capsys.readouterr().err == ""


def test_hosts_that_cannot_restart_are_told_nothing(torchrun, capsys):
    torchrun(restart=0, hosts=2, restarts=0)
    example.meeting_place()
    assert capsys.readouterr().err == ""
