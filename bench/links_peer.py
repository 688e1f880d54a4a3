"""What the hooks of peers' methods have in common: collectives, counted as `dc.Stats` counts."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import ddp_compress as dc


class Peer:
    """A DDP communication hook, and what it has sent.

    Collectives are waited for where they are called. Some originals have a thread of their own for
    that, which matters where a backward pass takes time (``--backward``).

    Attributes:
        stats: all counts but those of steps. Its payload is what is encoded for other ranks in all
            phases, its nonzeros are the entries therein, of dense methods the elements.
        one_bucket: whether the hook takes all gradients at once alone.
    """

    one_bucket = False

    def __init__(self) -> None:
        self.stats = dc.Stats()

    def hook(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """What `register_comm_hook` is given."""
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(self.mean(bucket))
        return future

    def mean(self, bucket: dist.GradBucket) -> Tensor:
        """The mean over ranks of what they send of their buckets, in the bucket's memory."""
        raise NotImplementedError

    def encoded(self, entries: int, nbytes: int) -> None:
        """Count entries, and the bytes that hold them."""
        self.stats.nonzeros += entries
        self.stats.payload_bits += 8 * nbytes

    def ring(self, tensor_bytes: float) -> None:
        """Count an all-reduce of so many bytes, as that of a ring."""
        moved = round(2 * (ranks() - 1) / ranks() * tensor_bytes)
        self.stats.collective(moved, moved)

    def gather(self, mine: Tensor) -> list[Tensor]:
        """Every rank's tensor; all are of one size."""
        everyone = [torch.empty_like(mine) for _ in range(ranks())]
        dist.all_gather(everyone, mine)
        others = (ranks() - 1) * mine.nbytes
        self.stats.collective(others, others)
        return everyone

    def gather_padded(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Of each tensor every rank's, after their sizes, and padded to the longest."""
        own = torch.tensor([len(tensor) for tensor in tensors])
        self.encoded(0, own.nbytes)
        sizes = torch.stack(self.gather(own))
        found = []
        for tensor, lengths in zip(tensors, sizes.T.tolist(), strict=True):
            everyone = self.gather(F.pad(tensor, (0, max(lengths) - len(tensor))))
            found.append([each[:n] for each, n in zip(everyone, lengths, strict=True)])
        return found

    def swap(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Give every rank its part, and take from each rank so many elements for this one."""
        mine, rank, lengths = torch.cat(list(parts)), dist.get_rank(), [len(p) for p in parts]
        theirs = mine.new_empty(sum(sizes))
        dist.all_to_all_single(theirs, mine, list(sizes), lengths)
        moved = len(mine) - lengths[rank], len(theirs) - sizes[rank]
        self.stats.collective(*(count * mine.itemsize for count in moved))
        return list(theirs.split(list(sizes)))

    def swap_uneven(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The same of any sizes, which travel first."""
        own = torch.tensor([[len(part)] for part in parts])
        self.encoded(0, own[1:].nbytes)
        sizes = self.swap(list(own), [1] * ranks())
        return self.swap(parts, [int(size) for size in sizes])


def ranks() -> int:
    """How many there are, W."""
    return dist.get_world_size()
