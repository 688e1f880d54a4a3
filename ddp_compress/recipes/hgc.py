"""Hybrid Gradient Compression: one rank's mask for all, and predicted, entropy-coded levels."""

from ddp_compress.checks import check_int
from ddp_compress.codec import codec_by_name
from ddp_compress.exchange import RotatingOwner, RunningAverage, SharedMask
from ddp_compress.memory import memory_with
from ddp_compress.message.layout import Scope
from ddp_compress.quantize import Levels
from ddp_compress.recipe import Recipe
from ddp_compress.schedules import Schedule, exponential_warmup
from ddp_compress.select import TopK

WARM_UP = exponential_warmup(0.001, steps=300)  # the paper's


def hgc(
    density: float | Schedule = WARM_UP,
    bits: int = 1,
    predictor: float | None = None,
    scope: Scope = "model",
    codec: str = "golomb",
    momentum: float | Schedule = 0.0,
    seed: int = 0,
) -> Recipe:
    """Send levels of few bits at the positions that one rank, in its turn, selects for all.

    Rank ``step mod W`` sends the positions of its K largest entries. Every rank then sends which
    of 2^bits levels its value at each of them falls into, entropy-coded, and with a predictor as
    the difference to a guess that all ranks share. What that rounds away stays in the residual.

    Around a change of the learning rate the paper raises density and momentum for a while: use
    `schedules.around_lr_change` for either.

    Args:
        density: share of the elements to send, or a schedule of it.
        bits: of a level: a sign and, above 1, its magnitude; 1 to 4.
        predictor: what the running average behind the guess keeps of itself in a step, in [0, 1).
            It costs one fp32 number a parameter on every rank; the paper has one, but on our
            gradients it saved nothing (see bench/RESULTS.md). None for no guess and no memory.
        scope: what one selection and its levels run over: ``"tensor"``, ``"bucket"``, ``"model"``.
        codec: how positions travel: ``"golomb"`` (smallest), ``"elias_fano"`` or ``"raw"``.
        momentum: in [0, 1), or a schedule of it. If not 0, it is applied before selection and
            masked where values are sent, and the optimizer must have none.
        seed: of the hash that breaks ties; ranks must agree.

    Returns:
        The recipe: frozen configuration, for `attach` or `CompressionState`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Hu et al., Practical Hybrid Gradient Compression for Federated Learning Systems (IJCAI
    2024).

    Example:
        >>> hgc(density=0.001, bits=2).quantize
        Levels(bits=2)
    """
    check_int("seed", seed)
    average = None if predictor is None else RunningAverage(predictor)
    return Recipe(
        "hgc",
        memory_with(momentum),
        TopK(density, scope, seed),
        Levels(bits),
        codec_by_name(codec),
        SharedMask(RotatingOwner(), average),
    )
