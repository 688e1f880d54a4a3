"""Ok-Topk: top-k by thresholds, a sparse reduce-scatter by regions, an all-gather."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from links_peer import Peer, ranks

RE_ESTIMATE, REPARTITION = 32, 64  # steps
LOCAL_SCALE, GLOBAL_SCALE = 1.012, 1.008


@dataclass
class Region:
    """What is kept of a bucket."""

    residual: Tensor
    step: int = 0
    local: float = 0.0  # threshold of a rank's entries
    everyone: float = 0.0  # threshold of sums
    ends: list[int] = field(default_factory=list)  # [W + 1], of the ranks' regions


class OkTopK(Peer):
    """Ok-Topk; a DDP bucket is what it calls a merged tensor.

    Re-enacted: thresholds from exact top-k every 32 steps, made 1.2 % and 0.8 % larger or smaller
    between where counts are off, the local one up to five times 3 % larger at once; regions of as
    many selected entries every 64 steps; sizes, then int32 indices and fp32 values to the owners of
    regions; of the sums those above the threshold to all, in an all-to-all, for Gloo has no
    all-gather of uneven sizes; entries that are in the result leave the residual. Left out: its 512
    dense steps at the start, and the balancing of the all-gather, which its code does without too.
    While residuals are young they outgrow the threshold, and several times k entries are sent: a
    run of 20 steps shows it in the mean of what is sent, and less in the median of times.

    Args:
        density: of the bucket's elements, how many are sent.
    """

    def __init__(self, density: float) -> None:
        super().__init__()
        self._density = density
        self._regions: dict[int, Region] = {}

    def mean(self, bucket: dist.GradBucket) -> Tensor:
        flat, region = bucket.buffer(), self._regions.get(bucket.index())
        if region is None or len(region.residual) != len(flat):  # DDP has rebuilt its buckets
            region = self._regions[bucket.index()] = Region(torch.zeros_like(flat))
        k, total = max(1, int(self._density * len(flat))), region.residual.add_(flat)
        sent = self._select(region, total, k)
        indices, values = self._reduce(region, sent, total, k)
        region.residual[sent[torch.isin(sent, indices)]] = 0
        region.step += 1
        flat.zero_()[indices] = values / ranks()
        return flat

    def _select(self, region: Region, total: Tensor, k: int) -> Tensor:
        """Where this rank's entries are above its threshold."""
        sizes = total.abs()
        if region.step % RE_ESTIMATE == 0:
            region.local = float(sizes.topk(k).values[-1])
        else:
            for _ in range(5):
                if int((sizes > region.local).sum()) <= 4 * k // 3:
                    break
                region.local *= 1.03
        chosen = (sizes > region.local).nonzero().view(-1)
        if region.step % REPARTITION == 0:
            firsts = chosen[[len(chosen) // ranks() * rank for rank in range(1, ranks())]]
            dist.all_reduce(firsts)
            self.ring(firsts.nbytes)
            region.ends = [0, *(firsts // ranks()).tolist(), len(total)]
        region.local *= adapted(len(chosen), 2 * k / 3, 5 * k / 4, LOCAL_SCALE)
        return chosen

    def _reduce(self, region: Region, sent: Tensor, total: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Where the largest sums over ranks are, k or so, and what they are."""
        rank, renewed = dist.get_rank(), region.step % RE_ESTIMATE == 0
        splits = torch.searchsorted(sent, torch.tensor(region.ends[1:-1])).tolist()
        parts = [pack(where, total[where]) for where in sent.tensor_split(splits)]
        self._count(*parts[:rank], *parts[rank + 1 :])
        begin, end = region.ends[rank : rank + 2]
        sums = torch.zeros(end - begin)
        for where, what in map(unpack, self.swap_uneven(parts)):
            sums.index_add_(0, where - begin, what)
        chosen = (sums.abs() > (0 if renewed else region.everyone)).nonzero().view(-1)
        mine = pack(chosen + begin, sums[chosen])
        self._count(mine)
        every = map(unpack, self.swap_uneven([mine] * ranks()))
        indices, values = (torch.cat(each) for each in zip(*every, strict=True))
        if not renewed:
            region.everyone *= adapted(len(indices), 2 * k / 3, 4 * k / 3, GLOBAL_SCALE)
            return indices, values
        largest = values.abs().topk(min(k, len(values)))
        region.everyone = float(largest.values[-1])
        return indices[largest.indices], values[largest.indices]

    def _count(self, *messages: Tensor) -> None:
        """Count entries that `pack` has packed."""
        words = sum(map(len, messages))
        self.encoded(words // 2, 4 * words)


def adapted(count: int, least: float, most: float, scale: float) -> float:
    """What a threshold is multiplied with, where so many were above it."""
    return 1 / scale if count < least else scale if count > most else 1.0


def pack(indices: Tensor, values: Tensor) -> Tensor:
    return torch.cat([indices.int(), values.view(torch.int32)])


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    indices, values = packed.chunk(2)
    return indices.long(), values.view(torch.float32)
