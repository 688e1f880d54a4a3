"""Entries as bytes, positions by a codec and values by a quantizer: one idea a file."""

from ddp_compress.body.kernel_patterns import KernelPatterns
from ddp_compress.body.listed import Listed

__all__ = ["KernelPatterns", "Listed"]
