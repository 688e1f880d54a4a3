"""Sparse Ternary Compression: positions, signs and one magnitude, in both directions."""

from ddp_compress.codec import codec_by_name
from ddp_compress.exchange import Sharded
from ddp_compress.memory import memory_with
from ddp_compress.message.layout import Scope
from ddp_compress.quantize import Signs
from ddp_compress.recipe import Recipe
from ddp_compress.schedules import Schedule
from ddp_compress.select import TopK


def stc(
    density: float | Schedule = 0.01,
    scope: Scope = "tensor",
    codec: str = "golomb",
    momentum: float | Schedule = 0.0,
) -> Recipe:
    """Send signs of the largest entries and their mean magnitude; compress the mean again.

    Of each tensor the k largest entries become plus or minus their mean magnitude. The owner of
    each range averages what it gets, and sends back the k largest of that and of a second
    residual, ternary again. What either leaves out is kept where it was left out.

    Args:
        density: share of the elements to send, in either direction, or a schedule of it.
        scope: what one selection and one magnitude run over: ``"tensor"``, ``"bucket"``,
            ``"model"``; on their way to owners and back, magnitudes are of every owner's range.
        codec: how positions travel: ``"golomb"`` (smallest), ``"elias_fano"`` or ``"raw"``.
        momentum: in [0, 1), or a schedule of it. If not 0, it is applied before compression and
            masked where entries are sent, and the optimizer must have none.

    Returns:
        The recipe: frozen configuration, for `attach` or `CompressionState`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Sattler et al., Robust and Communication-Efficient Federated Learning from Non-IID Data
    (2019), Alg. 2.

    Example:
        >>> stc(density=0.01).tensors
        {'residual': None, 'owner_residual': None}
    """
    return Recipe(
        "stc",
        memory_with(momentum),
        TopK(density, scope),
        Signs(),
        codec_by_name(codec),
        Sharded(),
    )
