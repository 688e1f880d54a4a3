"""EF-signSGD: the sign of every entry, and a mean magnitude for each block."""

from typing import Literal

from ddp_compress.checks import check_int, check_one_of
from ddp_compress.codec import Implicit
from ddp_compress.exchange import AllGather, BySize, Sharded
from ddp_compress.memory import Residual
from ddp_compress.quantize import Signs
from ddp_compress.recipe import Exchange, Recipe
from ddp_compress.select import All

FEW = 4  # ranks up to which an all-gather, without a second compression, is worth its bytes


def sign(
    block: int = 1024,
    exchange: Literal["auto", "all_gather", "sharded"] = "auto",
) -> Recipe:
    """Send one bit an element: its sign, times the mean magnitude of its block.

    ``r += g; sent = sign(r) * mean|r|`` in every block; ``r -= sent``.

    Args:
        block: elements that share a magnitude, a multiple of 8; 32 / block bits an element more,
            each way when sharded.
        exchange: ``"all_gather"``: every rank's signs to every rank, their mean taken.
            ``"sharded"``: to the owner of each range, who sends back the majority: the signs of
            their mean, with a second residual. Traffic then does not grow with the number of ranks.
            ``"auto"``: all-gather for up to 4 ranks, else sharded.

    Returns:
        The recipe: frozen configuration, for `attach` or `CompressionState`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Karimireddy et al., Error Feedback Fixes SignSGD (ICML 2019), Alg. 1; in blocks and in
    both directions: Zheng et al., Communication-Efficient Distributed Blockwise Momentum SGD with
    Error-Feedback (NeurIPS 2019).

    Example:
        >>> sign().quantize
        Signs(block=1024)
    """
    exchanges: dict[str, Exchange] = {
        "auto": BySize(AllGather(), Sharded(), FEW),
        "all_gather": AllGather(),
        "sharded": Sharded(),
    }
    check_one_of("exchange", exchange, exchanges)
    check_int("block", block)
    return Recipe(
        "sign",
        Residual(),
        All(),
        Signs(block),
        Implicit(),
        exchanges[exchange],
    )
