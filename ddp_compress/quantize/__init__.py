"""How values travel: one idea a file."""

from ddp_compress.quantize.means import Means
from ddp_compress.quantize.values import Values

__all__ = ["Means", "Values"]
