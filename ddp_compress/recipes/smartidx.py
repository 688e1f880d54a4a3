"""SmartIdx: whole kernels of convolutions, by the patterns of their signs."""

from ddp_compress.body import KernelPatterns
from ddp_compress.body.sign_patterns import MOST_PATTERNS
from ddp_compress.checks import check_within
from ddp_compress.codec import codec_by_name
from ddp_compress.exchange import AllGather
from ddp_compress.memory import memory_with
from ddp_compress.message.layout import Scope
from ddp_compress.quantize import Signs
from ddp_compress.recipe import Recipe
from ddp_compress.schedules import Schedule
from ddp_compress.select import WholeKernels


def smartidx(
    density: float | Schedule = 0.1,
    scope: Scope = "model",
    codec: str = "golomb",
    patterns: int = 2,
    momentum: float | Schedule = 0.0,
) -> Recipe:
    """Send whole kernels of convolutions: one position and one pattern of signs each.

    Entries travel in three lists: kernels whose signs follow one of a few shared patterns, other
    whole kernels with their signs, and individual entries (of linear layers, 1 x 1 convolutions,
    and lone large ones). All are ranked by the magnitude that they carry a bit, and the first are
    sent, up to the density; see `select.WholeKernels` and `body.KernelPatterns`. Values are
    means: of every parameter and list one.

    A kernel is the trailing spatial block of a convolution's weight, contiguous or channels_last.
    A model without convolutions sends individual entries alone, with signs and means.

    Args:
        density: share of the elements to send, or a schedule of it.
        scope: what one ranking runs over: ``"tensor"``, ``"bucket"`` or ``"model"``.
        codec: how positions travel: ``"golomb"`` (smallest), ``"elias_fano"`` or ``"raw"``.
        patterns: how many shared patterns there are of every size of kernels, 1 to 32, each with
            either sign.
        momentum: in [0, 1), or a schedule of it. If not 0, it is applied before compression and
            masked where entries are sent, and the optimizer must have none.

    Returns:
        The recipe: frozen configuration, for `attach` or `CompressionState`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: SmartIdx, of which we hold the appendix alone: its three packages and their statistics
    (Fig. 4). How kernels are ranked and patterns found is ours.

    Example:
        >>> smartidx(density=0.1).select
        WholeKernels(density=0.1, scope='model', patterns=2)
    """
    check_within("patterns", patterns, 1, MOST_PATTERNS)
    return Recipe(
        "smartidx",
        memory_with(momentum),
        WholeKernels(density, scope, patterns),
        Signs(),
        codec_by_name(codec),
        AllGather(),
        KernelPatterns(),
    )
