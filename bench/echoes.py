"""A process group of many ranks of which few are real, and the others their echoes.

Of W ranks the first C are processes; rank r says whatever rank r mod C says, to every rank. So a
rank packs, sends and unpacks as many messages as among W real ones, each written by one of the C,
and messages are as long as theirs. What an echo says as the owner of a shard is right in size
alone: it is another owner's answer. So shards must be equally large, which they are where W divides
every parameter.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NAME = "echoes"


class Echoes(dist.ProcessGroup):
    """The group. It knows what `ddp_compress` asks for: an all-to-all.

    Args:
        real: how many ranks are, C.
        store: where they meet.
        rank: of this process.
        size: how many ranks there are, W; a multiple of C.
        timeout: of the real ranks.
    """

    def __init__(self, real: int, store: dist.Store, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
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
        sizes, lengths = list(sizes[: self._count]), list(lengths[: self._count])
        heard = output[: sum(sizes)]
        work = self._real.alltoall_base(heard, given[: sum(lengths)], sizes, lengths, options)
        work.wait()
        output.view(-1, len(heard))[1:] = heard
        done: dist.Work = work
        return done

    def barrier(self, opts: Any) -> dist.Work:  # type: ignore[override]
        """Of the real ranks."""
        work: dist.Work = self._real.barrier(opts)
        return work

    def _get_backend(self, device: torch.device) -> Any:
        """Whose timeout is that of a group which is made after this."""
        return self._real


def echoed(real: int) -> str:
    """The backend of groups with so many real ranks, for `init_process_group`."""
    dist.Backend.register_backend(NAME, partial(Echoes, real), devices=["cpu"])
    return NAME
