"""Which entries to send: one idea a file."""

from ddp_compress.select.add_drop import AddDrop
from ddp_compress.select.all import All
from ddp_compress.select.heavier_side import HeavierSide
from ddp_compress.select.top_k import TopK
from ddp_compress.select.whole_kernels import WholeKernels

__all__ = ["AddDrop", "All", "HeavierSide", "TopK", "WholeKernels"]
