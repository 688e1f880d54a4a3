"""Rotated quantization: a few bits an entry, right on average."""

from typing import Literal

from ddp_compress.checks import check_bool, check_one_of
from ddp_compress.codec import Implicit
from ddp_compress.exchange import AllGather, BySize, Sharded
from ddp_compress.memory import NoMemory, Residual
from ddp_compress.quantize import Rotated
from ddp_compress.quantize.rotated import Transform
from ddp_compress.recipe import Exchange, Recipe
from ddp_compress.select import All

FEW = 4  # ranks up to which an all-gather, without a second compression, is worth its bytes


def rotated(
    bits: int = 4,
    transform: Transform = "hadamard",
    keep: float = 1.0,
    error_feedback: bool = False,
    iterations: int = 2,
    exchange: Literal["auto", "all_gather", "sharded"] = "auto",
    down: Recipe | None = None,
    seed: int = 0,
) -> Recipe:
    """Turn the gradient so that large entries spread, and round it to a few bits at random.

    In blocks of up to 8192: random signs and a Walsh-Hadamard transform; a share of the
    coefficients, drawn anew at every step; each rounded up or down to one of 2^bits levels, so that
    on average it stays what it was. What arrives is the gradient with noise, so nothing need be
    kept.

    Args:
        bits: of a coefficient, 1 to 8.
        transform: ``"hadamard"``, ``"kashin"`` (3 % more coefficients, and less noise in each) or
            ``"none"``.
        keep: share of the coefficients that travel, in (0, 1].
        error_feedback: whether what was lost is kept and added to the next gradient. What is sent
            is then not the gradient on average, and coefficients left out weigh nothing. It takes 3
            bits or more: with fewer the noise is larger than the gradient, and would grow.
        iterations: of Kashin's representation, 1 or more: each is two transforms more.
        exchange: ``"all_gather"``: every rank's codes to every rank, their mean taken.
            ``"sharded"``: to the owner of each range, who sends back the mean, compressed again.
            ``"auto"``: all-gather for up to 4 ranks, else sharded; sharded where ``down`` is given.
        down: how owners compress the mean; by default as ranks do. A second residual is kept where
            that recipe keeps one.
        seed: of all that is drawn, the same on every rank.

    Returns:
        The recipe: frozen configuration, for `attach` or `CompressionState`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range, or does not fit another.

    Source: Caldas et al., Expanding the Reach of Federated Learning by Reducing Client Resource
    Requirements (2018), §3.1; Konečný et al., Federated Learning: Strategies for Improving
    Communication Efficiency (2016).

    Example:
        >>> rotated(bits=4, keep=0.5).tensors
        {}
    """
    check_bool("error_feedback", error_feedback)
    quantize = Rotated(bits, transform, keep, not error_feedback, iterations, seed)
    if error_feedback and bits < 3:
        raise ValueError(f"error_feedback takes bits of 3 or more, got {bits}")
    check_one_of("exchange", exchange, ("auto", "all_gather", "sharded"))
    if not isinstance(down, Recipe | None):
        raise TypeError(f"down must be a recipe such as rotated(bits=5) or None, got {down!r}")
    if down is not None and exchange == "all_gather":
        raise ValueError(
            "down is the way back from owners: it takes exchange='sharded', got 'all_gather'"
        )
    memory = Residual() if error_feedback else NoMemory()

    def with_exchange(exchange: Exchange) -> Recipe:
        return Recipe("rotated", memory, All(), quantize, Implicit(), exchange)

    if exchange == "all_gather":
        return with_exchange(AllGather())
    sharded = Sharded(down or with_exchange(AllGather()))
    if exchange == "sharded" or down is not None:
        return with_exchange(sharded)
    return with_exchange(BySize(AllGather(), sharded, FEW))
