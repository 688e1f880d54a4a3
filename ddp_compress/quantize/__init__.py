"""How values travel: one idea a file."""

from ddp_compress.quantize.fractional import Fractional as Fractional
from ddp_compress.quantize.levels import Levels as Levels
from ddp_compress.quantize.means import Means as Means
from ddp_compress.quantize.rotated import Rotated as Rotated
from ddp_compress.quantize.signs import Signs as Signs
from ddp_compress.quantize.values import Values as Values
