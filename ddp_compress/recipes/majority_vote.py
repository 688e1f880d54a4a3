"""Majority voting: all ranks send values at the positions that most of them vote for."""

from typing import Literal

import torch

from ddp_compress.checks import check_int, check_one_of
from ddp_compress.codec import codec_by_name
from ddp_compress.exchange import BallotBox, SharedMask
from ddp_compress.memory import memory_with
from ddp_compress.message.layout import Scope
from ddp_compress.quantize import Fractional, Values
from ddp_compress.recipe import Quantize, Recipe
from ddp_compress.schedules import Schedule, check_density
from ddp_compress.select import AddDrop, TopK

VARIANTS = ("top", "random", "add_drop")


def majority_vote(
    density: float | Schedule = 0.01,
    variant: Literal["top", "random", "add_drop"] = "top",
    change: float = 0.1,
    value_bits: Literal[32, 16, 4] = 32,
    scope: Scope = "model",
    codec: str = "golomb",
    value_dtype: torch.dtype = torch.float16,
    ballot_box: Literal["auto", "gather", "sharded"] = "auto",
    momentum: float | Schedule = 0.0,
    seed: int = 0,
) -> Recipe:
    """Vote for the largest entries; send values at the K most voted positions.

    Every rank's ballot is the K largest of its accumulated gradient; the K positions with the most
    votes are the mask, the same on every rank, ties broken by a seeded hash. Values at the mask are
    averaged and leave the residual. Traffic does not grow with the number of ranks.

    The mask is always the K most voted of the whole message, whatever the scope: with ``"tensor"``
    or ``"bucket"`` only the ballots hold their density in each.

    With 16 bits the sum over ranks is rounded to 16 bits as well, from three ranks on, as in dense
    fp16 training, and that is lost. What rounding a rank's own values loses stays in its residual.

    Args:
        density: share of the elements that a ballot and the mask hold, or a schedule of it.
        variant: ``"top"``: the most voted win (MV). ``"random"``: K positions are drawn with
            chances as their votes (MV-RS). ``"add_drop"``: as top, but a rank changes little of its
            last ballot, and only the changes travel (MV-AD).
        change: of ``"add_drop"``: share of a ballot that may change in a step, in (0, 1].
        value_bits: 32 for fp32, 16 for ``value_dtype``, 4 for entropy-coded logarithmic levels.
        scope: what one ballot, not the mask, runs over: ``"tensor"``, ``"bucket"`` or ``"model"``.
        codec: how positions travel: ``"golomb"``, ``"elias_fano"`` or ``"raw"``.
        value_dtype: what 16 bits are: torch.float16 or torch.bfloat16.
        ballot_box: how votes are counted: ``"auto"``, ``"gather"`` or ``"sharded"``, see
            `exchange.BallotBox`.
        momentum: in [0, 1), or a schedule of it. If not 0, it is applied before voting and masked
            where values are sent, and the optimizer must have none.
        seed: of the hash that breaks ties; ranks must agree.

    Returns:
        The recipe: frozen configuration, for `attach` or `CompressionState`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument lies outside its range.

    Source: Ozfatura et al., Distributed Sparse SGD with Majority Voting (2020).

    Example:
        >>> majority_vote(variant="random").exchange.agree
        BallotBox(random=True, seed=0, count='auto')
    """
    check_one_of("variant", variant, VARIANTS)
    check_one_of("value_bits", value_bits, (32, 16, 4))
    check_one_of("value_dtype", value_dtype, (torch.float16, torch.bfloat16))
    check_density(change, "change")
    check_int("seed", seed)
    ballot = (
        AddDrop(density, change, scope, seed)
        if variant == "add_drop"
        else TopK(density, scope, seed)
    )
    quantizers: dict[int, Quantize] = {
        32: Values(torch.float32),
        16: Values(value_dtype),
        4: Fractional(4),
    }
    return Recipe(
        "majority_vote",
        memory_with(momentum),
        ballot,
        quantizers[value_bits],
        codec_by_name(codec),
        SharedMask(BallotBox(variant == "random", seed, ballot_box)),
    )
