"""The ranks that measure together: they begin together, and the slowest counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_compress.stats import Traffic
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.groups import rank_and_size


class Ranks:
    """A process group and the device that its tensors lie on.

    Args:
        group: None for the default one.
        device: of the model.

    Attributes:
        group, device: see above.
        rank: of this process.
        world_size: how many there are.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group, self.device = group, device
        self.rank, self.world_size = rank_and_size(group)

    def tensor(self, size: int, dtype: torch.dtype) -> Tensor:
        """Zeros [size] that can be sent."""
        return torch.zeros(size, dtype=dtype, device=self.device)

    def agree(self, describe: Callable[[], str]) -> None:
        """Raise on every rank unless all describe alike what is to be measured.

        Raises:
            PeerError: which rank differs, or failed, and how.
        """
        Comm(self.group, Traffic(), self.device).compare(describe)

    def meet(self) -> None:
        """Wait until every rank is here."""
        self.slowest(0.0)

    def seconds(self, work: Callable[[], None]) -> float:
        """How long some work takes this rank, if all begin together."""
        self.meet()
        begin = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def slowest(self, seconds: float) -> float:
        """The longest of all ranks' times."""
        return self.slowest_of([seconds])[0]

    def slowest_of(self, seconds: Sequence[float]) -> list[float]:
        """The longest of all ranks' times, of each of several."""
        most = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
        return [float(each) for each in most.tolist()]
