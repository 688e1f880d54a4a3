"""A dense all-reduce of two levels, beside which `within="node"` is measured.

A reduce-scatter inside each host, an all-reduce of each rank's slice between hosts, an all-gather
inside. Buckets follow one another through the three: the slow link need not wait for the others.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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
        self._gathering, _ = dist.new_subgroups(
            ranks_per_host
        )  # its calls have an order of their own
        self.stages = [ThreadPoolExecutor(1) for _ in range(3)]

    # Gloo's own reduce-scatter is an all-reduce, and its all-gather takes no uneven slices.

    def scatter(self, flat: Tensor) -> Tensor:
        """This rank's slice of a tensor's sum over the host's ranks."""
        here, sizes = self._sizes(flat)
        given = flat.new_empty(sum(here))
        dist.all_to_all_single(given, flat, here, sizes, group=self.inside)
        return given.view(self.ranks_per_host, -1).sum(0)

    def reduce(self, part: Tensor) -> Tensor:
        """Its mean over all ranks, in its place."""
        dist.all_reduce(part.div_(dist.get_world_size()), group=self.between)
        return part

    def gather(self, part: Tensor, flat: Tensor) -> Tensor:
        """The slices of the host's ranks, put together in `flat`."""
        here, sizes = self._sizes(flat)
        given = part.repeat(self.ranks_per_host)
        dist.all_to_all_single(flat, given, sizes, here, group=self._gathering)
        return flat

    def _sizes(self, flat: Tensor) -> tuple[list[int], list[int]]:
        """The size of this rank's slice, for each rank of the host, and the sizes of theirs."""
        sizes = [len(part) for part in flat.tensor_split(self.ranks_per_host)]
        return [sizes[dist.get_rank(self.inside)]] * self.ranks_per_host, sizes


def dense_hook(levels: Levels, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A DDP hook: the dense all-reduce over both levels."""
    flat, (first, second, third) = bucket.buffer(), levels.stages
    part = first.submit(levels.scatter, flat)
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
