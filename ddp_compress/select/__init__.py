"""Which entries to send: one idea a file."""

from ddp_compress.select.add_drop import AddDrop as AddDrop
from ddp_compress.select.all import All as All
from ddp_compress.select.heavier_side import HeavierSide as HeavierSide
from ddp_compress.select.top_k import TopK as TopK
from ddp_compress.select.whole_kernels import WholeKernels as WholeKernels
