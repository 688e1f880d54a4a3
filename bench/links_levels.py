"""A dense all-reduce of two levels, beside which `within="node"` is measured.

A reduce-scatter inside each host, an all-reduce of each rank's slice between hosts, an all-gather
inside. Buckets follow one another through the three: the slow link need not wait for the others.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.futures import Future


class Levels:
    """This rank's process groups; ranks of one host are neighbours.

    Args:
        ranks_per_host: L.

    Attributes:
        hosts: how many there are.
        ranks_per_host: see above.
        between: the ranks of this place on all hosts.
        inside: the ranks of this host.
        stages: threads for the three parts of an all-reduce.
    """

    def __init__(self, ranks_per_host: int) -> None:
        self.hosts, self.ranks_per_host = dist.get_world_size() // ranks_per_host, ranks_per_host
        mesh = init_device_mesh("cpu", (self.hosts, ranks_per_host))
        self.between, self.inside = mesh.get_group(0), mesh.get_group(1)
        # The same ranks: calls of another thread have an order of their own.
        self._gathering, _ = dist.new_subgroups(ranks_per_host)
        self._rooms: dict[int, Tensor] = {}
        self.stages = [ThreadPoolExecutor(1) for _ in range(3)]

    def scatter(self, flat: Tensor, number: int) -> Tensor:
        """This rank's slice of the sum, over the host's ranks, of such a bucket."""
        sizes = [len(part) for part in self._slices(flat)]
        here = [sizes[dist.get_rank(self.inside)]] * self.ranks_per_host
        given = self._room(number, sum(here))
        # Gloo's own reduce-scatter is an all-reduce.
        dist.all_to_all_single(given, flat, here, sizes, group=self.inside)
        first, *others = given.view(self.ranks_per_host, here[0])
        for other in others:
            first += other
        return first

    def reduce(self, part: Tensor) -> Tensor:
        """Its mean over all ranks, in its place."""
        dist.all_reduce(part.div_(dist.get_world_size()), group=self.between)
        return part

    def gather(self, part: Tensor, flat: Tensor) -> Tensor:
        """The slices of the host's ranks, put together in `flat`."""
        group, works = self._gathering, list[Any]()
        ranks = dist.get_process_group_ranks(group)
        # Gloo's own all-gather takes four times as long.
        for rank, place in zip(ranks, self._slices(flat), strict=True):
            if rank == dist.get_rank():
                place.copy_(part)
            else:
                works += [dist.isend(part, rank, group), dist.irecv(place, rank, group)]
        for work in works:
            work.wait()
        return flat

    def _slices(self, flat: Tensor) -> Sequence[Tensor]:
        return flat.tensor_split(self.ranks_per_host)

    def _room(self, number: int, numel: int) -> Tensor:
        """Memory of a bucket's own: fresh pages cost as much as what is sent."""
        if len(self._rooms.get(number, ())) != numel:
            self._rooms[number] = torch.zeros(numel)
        return self._rooms[number]


def dense_hook(levels: Levels, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A DDP hook: the dense all-reduce over both levels."""
    flat, (first, second, third) = bucket.buffer(), levels.stages
    part = first.submit(levels.scatter, flat, bucket.index())
    mean = second.submit(lambda: levels.reduce(part.result()))
    future: Future[Tensor] = Future()
    third.submit(complete, future, lambda: levels.gather(mean.result(), flat))
    return future


def complete(future: "Future[Tensor]", work: Callable[[], Tensor]) -> None:
    """Give a future its result; what fails on a thread fails backward too."""
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)  # type: ignore[arg-type]
