"""How values travel: one idea a file."""

from ddp_compress.quantize.fractional import Fractional
from ddp_compress.quantize.levels import Levels
from ddp_compress.quantize.means import Means
from ddp_compress.quantize.rotated import Rotated
from ddp_compress.quantize.signs import Signs
from ddp_compress.quantize.values import Values

__all__ = ["Fractional", "Levels", "Means", "Rotated", "Signs", "Values"]
