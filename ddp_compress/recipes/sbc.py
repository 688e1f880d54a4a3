"""Sparse Binary Compression: positions and one mean."""

from ddp_compress.codec import codec_by_name
from ddp_compress.exchange import exchange_by_name
from ddp_compress.memory import memory_with
from ddp_compress.message.layout import Scope
from ddp_compress.quantize import Means
from ddp_compress.recipe import Recipe
from ddp_compress.schedules import Schedule
from ddp_compress.select import HeavierSide


def sbc(
    density: float | Schedule = 0.001,
    scope: Scope = "tensor",
    codec: str = "elias_fano",
    momentum: float | Schedule = 0.0,
    exchange: str = "all_gather",
) -> Recipe:
    """Send where the heavier-sided largest entries are, and their mean.

    Of each tensor the k largest positive and the k most negative entries compete; the side with
    the larger mean is sent, as positions and that one mean. The rest stays in the residual:
    ``r += g; r[sent] -= mean``.

    Args:
        density: share of the elements to send, or a schedule of it.
        scope: what one selection and one mean run over: ``"tensor"``, ``"bucket"`` or ``"model"``.
        codec: how positions travel: ``"elias_fano"``, ``"golomb"`` (smallest) or ``"raw"``.
        momentum: in [0, 1), or a schedule of it. SBC compresses updates that hold their momentum
            already, and masks it where it sends (supplement A): give the momentum here, and 0 to
            the optimizer.
        exchange: how ranks share: ``"all_gather"``, ``"sharded"`` or ``"union"``; see
            `exchange.exchange_by_name`.

    Returns:
        The recipe: frozen configuration, for `attach` or `CompressionState`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Sattler et al., Sparse Binary Compression (2018), Alg. 2-4 and supplement A.

    Example:
        >>> sbc(density=0.001).quantize
        Means()
    """
    return Recipe(
        "sbc",
        memory_with(momentum),
        HeavierSide(density, scope),
        Means(),
        codec_by_name(codec),
        exchange_by_name(exchange),
    )
