"""The one table of recipes that the law tests run over.

Any two parts, scopes, kinds of density and of `min_numel` that go together meet in some row, which
`tests/test_table.py` holds. Where it says that some do not, ``python -m tests.pairs`` prints rows
for `MIXED`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from ddp_compress import Recipe, exponential_warmup
from ddp_compress.body import KernelPatterns
from ddp_compress.codec import EliasFano, Golomb, Implicit, Raw
from ddp_compress.exchange import (
    AllGather,
    BallotBox,
    RotatingOwner,
    RunningAverage,
    Sharded,
    SharedMask,
    Union,
)
from ddp_compress.memory import MomentumCorrection, NoMemory, Residual
from ddp_compress.quantize import Fractional, Levels, Means, Rotated, Signs, Values
from ddp_compress.recipes import (
    dgc,
    hgc,
    majority_vote,
    rotated,
    sbc,
    sign,
    smartidx,
    stc,
    topk,
)
from ddp_compress.select import AddDrop, All, HeavierSide, TopK, WholeKernels


@dataclass(frozen=True)
class Row:
    """A recipe, and from which size on it holds."""

    recipe: Recipe
    min_numel: int = 0

    @property
    def scope(self) -> str:
        return self.recipe.select.scope

    @property
    def momentum(self) -> float:
        return self.recipe.memory.momentum_at(0)


RECIPES = {
    "topk": Row(topk(0.1, "tensor")),
    "topk-sharded": Row(topk(0.1, "tensor", exchange="sharded")),
    "dgc": Row(dgc(0.1, 0.9, "tensor")),
    "dgc-golomb": Row(dgc(0.03, 0.5, "model", "golomb"), min_numel=20),
    "sbc": Row(sbc(0.1, "tensor")),
    "sbc-golomb": Row(sbc(0.03, "bucket", "golomb")),
    "sbc-sharded": Row(sbc(0.05, exchange="sharded"), min_numel=20),
    "stc": Row(stc(0.1)),
    "sign": Row(sign(block=64)),
    "sign-sharded": Row(sign(block=32, exchange="sharded"), min_numel=20),
    "rotated": Row(rotated(4)),
    "rotated-feedback": Row(rotated(5, "none", error_feedback=True)),
    "vote": Row(majority_vote(0.1)),
    "vote-sharded": Row(majority_vote(0.1, ballot_box="sharded"), min_numel=20),
    "vote-add-drop": Row(majority_vote(0.1, "add_drop", value_bits=16, ballot_box="gather")),
    "vote-add-drop-sharded": Row(
        majority_vote(0.05, "add_drop", 0.2, 4, "tensor", ballot_box="sharded"), min_numel=20
    ),
    "smartidx": Row(smartidx(0.1)),
    "hgc": Row(hgc(0.1, predictor=0.9)),
    "hgc-2-bits": Row(hgc(0.05, bits=2, scope="tensor", momentum=0.9), min_numel=20),
    "rotated-sharded": Row(rotated(4, keep=0.5, down=rotated(5)), min_numel=20),
}

# The same recipes with other options, whose parts `MIXED` has, too.
OPTIONS = {
    "topk-golomb-fp16": Row(topk(0.05, "bucket", "golomb", torch.float16)),
    "topk-raw-bf16": Row(topk(0.2, "model", "raw", torch.bfloat16), min_numel=20),
    "topk-warmup": Row(topk(exponential_warmup(0.02, steps=5, start=0.25), "bucket")),
    "topk-union": Row(topk(0.05, "bucket", value_dtype=torch.half, exchange="union"), min_numel=20),
    "dgc-fp16": Row(
        dgc(exponential_warmup(0.05, steps=4, start=0.25), 0.9, "bucket", value_dtype=torch.half)
    ),
    "dgc-sharded": Row(dgc(0.05, 0.9, "model", "golomb", exchange="sharded")),
    "sbc-raw": Row(sbc(0.02, "model", "raw"), min_numel=20),
    "sbc-momentum": Row(sbc(0.05, "tensor", "golomb", momentum=0.9)),
    "stc-momentum": Row(stc(0.05, "bucket", "elias_fano", momentum=0.9), min_numel=20),
    "rotated-kashin": Row(rotated(2, "kashin", keep=0.5), min_numel=20),
    "sign-rotated": Row(
        replace(sign(64), exchange=Sharded(rotated(5, "none", error_feedback=True)))
    ),
    "vote-random": Row(majority_vote(0.05, "random", value_bits=4, ballot_box="sharded")),
    "smartidx-tensor": Row(smartidx(0.05, "tensor", "elias_fano", momentum=0.9), min_numel=20),
    "hgc-warmup": Row(hgc(exponential_warmup(0.02, steps=5, start=0.25), bits=3)),
}

# Parts that no recipe has together. How a column's words are meant is in `PARTS`.
MIXED = """
memory    select         quantize    codec       exchange    scope   density   min_numel
none      all            values      implicit    all_gather  tensor  constant  20
none      all            means       implicit    all_gather  tensor  constant  20
momentum  all            means       implicit    union       tensor  constant  0
none      all            signs       implicit    down        tensor  constant  20
none      all            fractional  implicit    all_gather  tensor  constant  20
none      all            levels      implicit    union       tensor  constant  20
residual  top_k          means       elias_fano  ballots     bucket  schedule  20
momentum  top_k          fractional  raw         down        bucket  schedule  0
residual  top_k          rotated     raw         ballots     tensor  schedule  20
momentum  top_k          patterns    elias_fano  union       tensor  schedule  0
residual  heavier_side   half        elias_fano  union       bucket  constant  0
residual  heavier_side   blocks      raw         union       tensor  schedule  20
residual  heavier_side   fractional  raw         union       model   schedule  20
momentum  heavier_side   levels      golomb      drawn       bucket  schedule  20
momentum  heavier_side   kashin      elias_fano  owner       bucket  schedule  20
residual  heavier_side   patterns    raw         sharded     tensor  schedule  20
momentum  add_drop       means       raw         all_gather  model   schedule  0
momentum  add_drop       signs       elias_fano  owner       model   schedule  20
momentum  add_drop       levels      raw         all_gather  bucket  constant  20
momentum  add_drop       rotated     raw         down        bucket  schedule  0
momentum  add_drop       patterns    elias_fano  union       bucket  constant  0
momentum  whole_kernels  bfloat16    raw         owner       bucket  schedule  20
residual  whole_kernels  means       elias_fano  owner       tensor  schedule  20
momentum  whole_kernels  blocks      raw         drawn       bucket  schedule  0
residual  whole_kernels  fractional  elias_fano  owner       model   schedule  20
momentum  whole_kernels  levels      elias_fano  sharded     model   constant  0
momentum  whole_kernels  kashin      golomb      union       model   schedule  20
"""

SELECTIONS: dict[str, Callable[..., Any]] = {
    "all": lambda density, scope: All(),  # which has neither
    "top_k": TopK,
    "heavier_side": HeavierSide,
    "add_drop": lambda density, scope: AddDrop(density, 0.2, scope),
    "whole_kernels": WholeKernels,
}
PARTS: dict[str, dict[str, Any]] = {
    "memory": {
        "none": NoMemory(),
        "residual": Residual(),
        "momentum": MomentumCorrection(0.9),
    },
    "select": SELECTIONS,
    "quantize": {
        "values": Values(),
        "half": Values(torch.float16),
        "bfloat16": Values(torch.bfloat16),
        "means": Means(),
        "signs": Signs(),
        "blocks": Signs(64),
        "fractional": Fractional(4),
        "levels": Levels(3),
        "rotated": Rotated(4, keep=0.5),
        "kashin": Rotated(2, "kashin"),
        "patterns": Signs(),  # in a body of their own
    },
    "codec": {
        "implicit": Implicit(),
        "raw": Raw(),
        "elias_fano": EliasFano(),
        "golomb": Golomb(),
    },
    "exchange": {
        "all_gather": AllGather(),
        "sharded": Sharded(),
        "down": Sharded(rotated(5, "none", error_feedback=True)),
        "union": Union(),
        "owner": SharedMask(RotatingOwner()),
        "predicted": SharedMask(RotatingOwner(), RunningAverage(0.9)),
        "ballots": SharedMask(BallotBox(count="sharded")),
        "drawn": SharedMask(BallotBox(random=True, count="gather")),
    },
    "scope": {scope: scope for scope in ("tensor", "bucket", "model")},
    "density": {"constant": 0.1, "schedule": exponential_warmup(0.05, steps=4, start=0.25)},
    "min_numel": {"0": 0, "20": 20},
}


def mixed(words: dict[str, str]) -> Row:
    """A row of parts, by their words.

    Raises:
        ValueError: two of them do not go together.
    """
    part = {column: PARTS[column][word] for column, word in words.items()}
    recipe = Recipe(
        "-".join([words["quantize"], words["select"], words["exchange"]]),
        part["memory"],
        part["select"](part["density"], part["scope"]),
        part["quantize"],
        part["codec"],
        part["exchange"],
        *([KernelPatterns()] if words["quantize"] == "patterns" else []),
    )
    return Row(recipe, part["min_numel"])


COLUMNS, *LINES = [line.split() for line in MIXED.split("\n") if line]
MIXES = [mixed(dict(zip(COLUMNS, line, strict=True))) for line in LINES]
ROWS = RECIPES | {row.recipe.name: row for row in MIXES}
FAMILY = (
    "topk",
    "dgc-golomb",
    "sbc-golomb",
    "vote-sharded",
    "vote-add-drop-sharded",
    "hgc",
    "stc",
    "sign-sharded",
    "rotated-feedback",
    "smartidx",
)


def each(rows: dict[str, Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows.values(), ids=rows)


def keeping(rows: dict[str, Row]) -> dict[str, Row]:
    return {name: row for name, row in rows.items() if row.recipe.memory.tensors}


every_row = each(ROWS)
every_keeping_row = each(keeping(ROWS))
every_recipe = each(RECIPES)
every_keeping_recipe = each(keeping(RECIPES))
every_family = each({name: RECIPES[name] for name in FAMILY})
