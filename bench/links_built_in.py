"""PyTorch's own hooks. What they send is computed, as for rings."""

from typing import Any

import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from links_peer import Peer


class Fp16(Peer):
    """`fp16_compress_hook`."""

    def hook(self, bucket: dist.GradBucket) -> Any:
        self._count(bucket)
        return default_hooks.fp16_compress_hook(None, bucket)  # type: ignore[arg-type]

    def _count(self, bucket: dist.GradBucket) -> None:
        numel = bucket.buffer().numel()
        self.encoded(numel, 2 * numel)
        self.ring(2 * numel)


class Bf16(Fp16):
    """`bf16_compress_hook`."""

    def hook(self, bucket: dist.GradBucket) -> Any:
        self._count(bucket)
        return default_hooks.bf16_compress_hook(None, bucket)  # type: ignore[arg-type]


class PowerSGD(Peer):
    """`powerSGD_hook`, dense for two steps: the least that it takes, and within a warm-up.

    Args:
        rank: of the approximation.
    """

    one_bucket = True  # with several it deadlocks on Gloo

    def __init__(self, rank: int = 1) -> None:
        super().__init__()
        self._state = powerSGD_hook.PowerSGDState(
            process_group=None, matrix_approximation_rank=rank, start_powerSGD_iter=2
        )

    def hook(self, bucket: dist.GradBucket) -> Any:
        numel, before = bucket.buffer().numel(), self._state.total_numel_after_compression
        future = powerSGD_hook.powerSGD_hook(self._state, bucket)
        sent = self._state.total_numel_after_compression - before or numel  # 0 while it is dense
        self.encoded(numel, 4 * sent)
        self.ring(4 * sent)
        if sent < numel:
            self.stats.collectives += 2  # what is too small, the left factors, the right ones
        return future
