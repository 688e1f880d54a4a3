"""Entries that travel as pairs of an index and an fp32 value, in all-gathers.

`torch.topk` and `torch.where` give indices of int64, and what is sent as it comes has 96 bits an
entry: so do the PyTorch versions of GRACE. ``index_bits=32`` is what a careful author would send.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from links_peer import Peer, ranks

INDEX_TYPES = {32: torch.int32, 64: torch.int64}


def index_type(bits: int) -> torch.dtype:
    if bits not in INDEX_TYPES:
        raise ValueError(f"index_bits: expected 32 or 64, got {bits!r}")
    return INDEX_TYPES[bits]


class Pairs(Peer):
    """What everybody writes first: top-k of the bucket, two all-gathers, a residual.

    Args:
        density: of the bucket's elements, how many are sent.
        index_bits: 32 or 64.
    """

    def __init__(self, density: float, index_bits: int = 64) -> None:
        super().__init__()
        self._density, self._index_type = density, index_type(index_bits)
        self._residuals: dict[int, Tensor] = {}

    def mean(self, bucket: dist.GradBucket) -> Tensor:
        flat, residual = bucket.buffer(), self._residuals.get(bucket.index())
        if residual is None or len(residual) != len(flat):  # DDP has rebuilt its buckets
            residual = self._residuals[bucket.index()] = torch.zeros_like(flat)
        residual += flat
        indices = residual.abs().topk(k_of(flat, self._density)).indices
        values = residual[indices]
        residual[indices] = 0
        indices = indices.to(self._index_type)
        self.encoded(len(values), values.nbytes + indices.nbytes)
        flat.zero_()
        for where, what in zip(self.gather(indices), self.gather(values), strict=True):
            flat.index_add_(0, where, what)
        return flat.div_(ranks())


class GraceTopK(Peer):
    """GRACE's top-k with its residual memory and its all-gather.

    Re-enacted: tensor by tensor, largest k at least 1; what was sent is made dense and subtracted
    from what is kept; an all-gather of the values and one of the indices; each rank's message is
    made dense, and those are added. Not so: GRACE starts after backward, this in its buckets.

    Args:
        density: of a tensor's elements, how many are sent.
        index_bits: 32 or 64.
    """

    def __init__(self, density: float, index_bits: int = 64) -> None:
        super().__init__()
        self._density, self._index_type = density, index_type(index_bits)
        self._residuals: dict[Tensor, Tensor] = {}

    def mean(self, bucket: dist.GradBucket) -> Tensor:
        for parameter, grad in zip(bucket.parameters(), bucket.gradients(), strict=True):
            grad.copy_(self._mean(parameter, grad.flatten()).view_as(grad))
        return bucket.buffer()

    def _mean(self, parameter: Tensor, flat: Tensor) -> Tensor:
        if parameter in self._residuals:
            flat = self._residuals[parameter] + flat
        indices = flat.abs().topk(k_of(flat, self._density)).indices
        values = flat[indices]
        self._residuals[parameter] = flat - dense(indices, values, len(flat))
        indices = indices.to(self._index_type)
        self.encoded(len(values), values.nbytes + indices.nbytes)
        return mean_of(self.gather(indices), self.gather(values), len(flat))


class GraceDgc(GraceTopK):
    """GRACE's Deep Gradient Compression, likewise.

    Re-enacted: momentum correction, both memories masked where entries were sent; a threshold from
    1 % of the entries, drawn with replacement; up to ten times it is made 1.3 or 0.7 times as large
    while a count of all entries above it is not within 30 % of k; sizes, which differ between
    ranks, are gathered first, then values and indices are, padded to the longest. Left out:
    clipping, which is off unless asked for.

    Args:
        density, index_bits: see `GraceTopK`.
        momentum: of the correction.
    """

    def __init__(self, density: float, index_bits: int = 64, momentum: float = 0.9) -> None:
        super().__init__(density, index_bits)
        self._momentum = momentum
        self._velocities: dict[Tensor, Tensor] = {}

    def _mean(self, parameter: Tensor, flat: Tensor) -> Tensor:
        if parameter in self._residuals:
            velocity = self._momentum * self._velocities[parameter] + flat
            flat = self._residuals[parameter] + velocity
        else:
            velocity = flat
        mask = self._largest(flat.abs())
        self._velocities[parameter], self._residuals[parameter] = velocity * ~mask, flat * ~mask
        (indices,) = torch.where(mask)
        values, indices = flat[indices], indices.to(self._index_type)
        self.encoded(len(values), values.nbytes + indices.nbytes)
        every_value, every_index = self.gather_padded([values, indices])
        return mean_of(every_index, every_value, len(flat))

    def _largest(self, sizes: Tensor) -> Tensor:
        """Where entries are at least as large as a threshold, which k of them roughly are."""
        numel = len(sizes)
        sample = sizes[torch.randint(numel, (max(1, numel // 100),))]
        threshold = sample.topk(max(1, int(0.01 * self._density * numel))).values.min()
        mask, k = sizes >= threshold, self._density * numel
        for _ in range(10):
            count = int(mask.sum())
            if 0.7 * k <= count <= 1.3 * k:
                break
            threshold = threshold * (1.3 if count > k else 0.7)
            mask = sizes >= threshold
        return mask


def k_of(flat: Tensor, density: float) -> int:
    return max(1, int(density * len(flat)))


def dense(indices: Tensor, values: Tensor, numel: int) -> Tensor:
    """The entries among zeros."""
    return values.new_zeros(numel).index_copy_(0, indices.long(), values)


def mean_of(indices: list[Tensor], values: list[Tensor], numel: int) -> Tensor:
    """The mean over ranks, each of whose messages is made dense."""
    total = torch.zeros(numel)
    for where, what in zip(indices, values, strict=True):
        total += dense(where, what, numel)
    return total / ranks()
