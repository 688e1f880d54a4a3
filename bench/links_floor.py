"""The least that error feedback takes."""

import torch
import torch.distributed as dist
from torch import Tensor

from links_peer import Peer


class Floor(Peer):
    """``r.add_(g)``: a residual takes up the gradient, and nothing is sent."""

    def __init__(self) -> None:
        super().__init__()
        self._residuals: dict[int, Tensor] = {}

    def mean(self, bucket: dist.GradBucket) -> Tensor:
        flat, residual = bucket.buffer(), self._residuals.get(bucket.index())
        if residual is None or len(residual) != len(flat):  # DDP has rebuilt its buckets
            residual = self._residuals[bucket.index()] = torch.zeros_like(flat)
        residual.add_(flat)
        return flat
