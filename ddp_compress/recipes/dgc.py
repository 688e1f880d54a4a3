"""Deep Gradient Compression: top-k of momentum-corrected gradients."""

import torch

from ddp_compress.codec import codec_by_name
from ddp_compress.exchange import exchange_by_name
from ddp_compress.memory import MomentumCorrection
from ddp_compress.message.layout import Scope
from ddp_compress.quantize import Values
from ddp_compress.recipe import Recipe
from ddp_compress.schedules import Schedule
from ddp_compress.select import TopK


def dgc(
    density: float | Schedule = 0.001,
    momentum: float | Schedule = 0.9,
    scope: Scope = "tensor",
    codec: str = "elias_fano",
    value_dtype: torch.dtype = torch.float32,
    exchange: str = "all_gather",
    clip: float | None = None,
) -> Recipe:
    """Send the largest entries of the accumulated velocity; zero its momentum where sent.

    ``m = momentum * m + g; v = v + m``; the largest ``|v|`` are sent, and v and m zeroed there.
    The optimizer must be plain SGD with momentum 0: a second momentum is refused at its first
    step. Use `schedules.exponential_warmup` for the density, as the paper does.

    Args:
        density: share of the elements to send, or a schedule of it.
        momentum: of the training, in [0, 1), or a schedule of it.
        scope: what one top-k runs over: ``"tensor"``, ``"bucket"`` or ``"model"``.
        codec: how positions travel: ``"elias_fano"``, ``"golomb"`` (smallest) or ``"raw"``.
        value_dtype: how values travel; what rounding loses stays in the residual.
        exchange: how ranks share: ``"all_gather"``, ``"sharded"`` or ``"union"``; see
            `exchange.exchange_by_name`.
        clip: None, or local gradient clipping: before it enters the momentum, every parameter's
            gradient is scaled down on each of the W ranks to a norm of ``clip / sqrt(W)`` at most.
            The norm is a parameter's own, as in the authors' code, not the whole gradient's: see
            `memory.clip_gradient`. What is clipped is lost.

    Returns:
        The recipe: frozen configuration, for `attach` or `CompressionState`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Lin et al., Deep Gradient Compression (ICLR 2018), Alg. 1; §3.2.

    Example:
        >>> dgc(density=0.001).memory
        MomentumCorrection(momentum=0.9, clip=None)
    """
    return Recipe(
        "dgc",
        MomentumCorrection(momentum, clip),
        TopK(density, scope),
        Values(value_dtype),
        codec_by_name(codec),
        exchange_by_name(exchange),
    )
