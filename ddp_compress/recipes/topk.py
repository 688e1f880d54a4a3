"""Gradient dropping: the largest entries, with error feedback."""

import torch

from ddp_compress.codec import codec_by_name
from ddp_compress.exchange import exchange_by_name
from ddp_compress.memory import Residual
from ddp_compress.message.layout import Scope
from ddp_compress.quantize import Values
from ddp_compress.recipe import Recipe
from ddp_compress.schedules import Schedule
from ddp_compress.select import TopK


def topk(
    density: float | Schedule = 0.01,
    scope: Scope = "bucket",
    codec: str = "elias_fano",
    value_dtype: torch.dtype = torch.float32,
    exchange: str = "all_gather",
) -> Recipe:
    """Send the entries of largest magnitude; what is left is added to the next gradient.

    ``r += g``; the ``max(1, round(density * N))`` largest ``|r|`` are sent and leave ``r``.

    Args:
        density: share of the elements to send, or a schedule of it.
        scope: what one top-k runs over: ``"tensor"``, ``"bucket"`` or ``"model"``. A bucket's
            entries travel while backward goes on; those of the whole model wait for the last one.
        codec: how positions travel: ``"elias_fano"``, ``"golomb"`` (smallest) or ``"raw"``.
        value_dtype: how values travel; what rounding loses stays in the residual.
        exchange: how ranks share: ``"all_gather"``, ``"sharded"`` or ``"union"``; see
            `exchange.exchange_by_name`.

    Returns:
        The recipe: frozen configuration, for `attach` or `CompressionState`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Aji & Heafield, Sparse Communication for Distributed Gradient Descent (EMNLP 2017).

    Example:
        >>> topk(density=0.01).select
        TopK(density=0.01, scope='bucket', seed=None)
    """
    return Recipe(
        "topk",
        Residual(),
        TopK(density, scope),
        Values(value_dtype),
        codec_by_name(codec),
        exchange_by_name(exchange),
    )
