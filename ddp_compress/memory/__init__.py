"""What a rank keeps of the gradients it has not sent: one idea a file."""

from ddp_compress.memory.addends import Addends
from ddp_compress.memory.choice import memory_with
from ddp_compress.memory.clip import clip_gradient
from ddp_compress.memory.momentum_correction import MomentumCorrection
from ddp_compress.memory.no_memory import NoMemory
from ddp_compress.memory.residual import Residual

__all__ = ["Addends", "MomentumCorrection", "NoMemory", "Residual", "clip_gradient", "memory_with"]
