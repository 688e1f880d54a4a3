"""A process group of many ranks of which few are real, and the others their echoes.

Of W ranks the first C are processes; rank r says whatever rank r mod C says, to every rank. So a
rank packs, sends and unpacks as many messages as among W real ones, each written by one of the C,
and messages are as long as theirs. What an echo says as the owner of a shard is right in size
alone: it is another owner's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NAME = "echoes"


class Echoes(dist.ProcessGroup):
    """A process group of few real ranks and their echoes, for what an exchange calls.

    Args:
        real: how many ranks are, C.
        store: where they meet.
        rank: of this process.
        size: how many ranks there are, W.
        timeout: of the real ranks.
    """

    def __init__(self, real: int, store: dist.Store, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._name = ""
        self._count = real
        self._real: Any = dist.ProcessGroupGloo(store, rank, real, timeout)

    def alltoall_base(  # type: ignore[override]
        self,
        output: Tensor,
        given: Tensor,
        sizes: Sequence[int],
        lengths: Sequence[int],
        options: Any,
    ) -> dist.Work:
        """Hear the real ranks, and each of them again and again."""
        count = self._count
        first, others = output.split([sum(sizes[:count]), sum(sizes[count:])])
        ours = given[: sum(lengths[:count])]
        work: Any = self._real.alltoall_base(
            first, ours, list(sizes[:count]), list(lengths[:count]), options
        )
        work.wait()
        said = first.split(list(sizes[:count]))
        for number, part in enumerate(others.split(list(sizes[count:])), start=count):
            heard = said[number % count][: len(part)]  # parts differ where W does not divide
            part[: len(heard)] = heard
            part[len(heard) :] = 0
        done: dist.Work = work
        return done

    def barrier(self, opts: Any) -> dist.Work:  # type: ignore[override]
        """Of the real ranks."""
        work: dist.Work = self._real.barrier(opts)
        return work

    @property
    def group_name(self) -> Any:
        """As `torch.distributed` calls it; a group without backends of its own would forget."""
        return self._name

    def _set_group_name(self, name: str) -> None:
        self._name = name

    def _get_backend(self, device: torch.device) -> Any:
        """Whose timeout is that of a group which is made after this."""
        return self._real


def echoed(real: int) -> str:
    """The backend of groups with so many real ranks, for `init_process_group`."""
    dist.Backend.register_backend(NAME, partial(Echoes, real), devices=["cpu"])
    return NAME


def echo_group(size: int) -> dist.ProcessGroup:
    """A group of this rank, its first, and echoes of it; `torch.distributed` must be set up."""
    c10d = dist.distributed_c10d
    own = dist.get_rank()
    ranks = [own, *range(own), *range(own + 1, max(size, own + 1))][:size]
    group, _ = c10d._new_process_group_helper(
        size,
        0,
        ranks,
        dist.Backend(echoed(1)),
        dist.HashStore(),
        f"{NAME} of {size} for {own}",  # type: ignore[arg-type]
        timeout=timedelta(minutes=1),
    )
    c10d._world.pg_group_ranks[group] = {rank: number for number, rank in enumerate(ranks)}
    return group
