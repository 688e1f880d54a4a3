"""What a rank keeps of the gradients it has not sent: one idea a file."""

from ddp_compress.memory.choice import memory_with
from ddp_compress.memory.clip import clip_gradient
from ddp_compress.memory.momentum_correction import MomentumCorrection
from ddp_compress.memory.nothing import Nothing
from ddp_compress.memory.residual import Residual

__all__ = ["MomentumCorrection", "Nothing", "Residual", "clip_gradient", "memory_with"]
