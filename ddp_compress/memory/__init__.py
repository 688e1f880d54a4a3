"""What a rank keeps of the gradients it has not sent: one idea a file."""

from ddp_compress.memory.addends import Addends as Addends
from ddp_compress.memory.choice import memory_with as memory_with
from ddp_compress.memory.clip import clip_gradient as clip_gradient
from ddp_compress.memory.momentum_correction import MomentumCorrection as MomentumCorrection
from ddp_compress.memory.no_memory import NoMemory as NoMemory
from ddp_compress.memory.residual import Residual as Residual
