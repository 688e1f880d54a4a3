"""The one table of recipes that the law tests run over."""

from dataclasses import dataclass, replace

import pytest
import torch

from ddp_compress import Recipe, exponential_warmup
from ddp_compress.exchange import Sharded
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


ROWS = {
    "topk": Row(topk(0.1, "tensor")),
    "topk-golomb-fp16": Row(topk(0.05, "bucket", "golomb", torch.float16)),
    "topk-raw-bf16": Row(topk(0.2, "model", "raw", torch.bfloat16), min_numel=20),
    "topk-warmup": Row(topk(exponential_warmup(0.02, steps=5), "bucket")),
    "dgc": Row(dgc(0.1, 0.9, "tensor")),
    "dgc-golomb": Row(dgc(0.03, 0.5, "model", "golomb"), min_numel=20),
    "dgc-fp16": Row(dgc(exponential_warmup(0.05, steps=4), 0.9, "bucket", value_dtype=torch.half)),
    "sbc": Row(sbc(0.1, "tensor")),
    "sbc-golomb": Row(sbc(0.03, "bucket", "golomb")),
    "sbc-raw": Row(sbc(0.02, "model", "raw"), min_numel=20),
    "sbc-momentum": Row(sbc(0.05, "tensor", "golomb", momentum=0.9)),
    "topk-sharded": Row(topk(0.1, "tensor", exchange="sharded")),
    "topk-union": Row(topk(0.05, "bucket", value_dtype=torch.half, exchange="union"), min_numel=20),
    "dgc-sharded": Row(dgc(0.05, 0.9, "model", "golomb", exchange="sharded")),
    "sbc-sharded": Row(sbc(0.05, exchange="sharded"), min_numel=20),
    "stc": Row(stc(0.1)),
    "stc-momentum": Row(stc(0.05, "bucket", "elias_fano", momentum=0.9), min_numel=20),
    "sign": Row(sign(block=64)),
    "sign-sharded": Row(sign(block=32, exchange="sharded"), min_numel=20),
    "rotated": Row(rotated(4)),
    "rotated-kashin": Row(rotated(2, "kashin", keep=0.5), min_numel=20),
    "rotated-feedback": Row(rotated(5, "none", error_feedback=True)),
    "rotated-sharded": Row(rotated(4, keep=0.5, down=rotated(5)), min_numel=20),
    "sign-rotated": Row(
        replace(sign(64), exchange=Sharded(rotated(5, "none", error_feedback=True)))
    ),
    "vote": Row(majority_vote(0.1)),
    "vote-sharded": Row(majority_vote(0.1, ballot_box="sharded"), min_numel=20),
    "vote-random": Row(majority_vote(0.05, "random", value_bits=4, ballot_box="sharded")),
    "vote-add-drop": Row(majority_vote(0.1, "add_drop", value_bits=16, ballot_box="gather")),
    "vote-add-drop-sharded": Row(
        majority_vote(0.05, "add_drop", 0.2, 4, "tensor", ballot_box="sharded"), min_numel=20
    ),
    "smartidx": Row(smartidx(0.1)),
    "smartidx-tensor": Row(smartidx(0.05, "tensor", "elias_fano", momentum=0.9), min_numel=20),
    "hgc": Row(hgc(0.1, predictor=0.9)),
    "hgc-2-bits": Row(hgc(0.05, bits=2, scope="tensor", momentum=0.9), min_numel=20),
    "hgc-warmup": Row(hgc(exponential_warmup(0.02, steps=5), bits=3)),
}

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
KEEPING = {name: row for name, row in ROWS.items() if row.recipe.memory.tensors}
every_keeping_row = pytest.mark.parametrize("row", KEEPING.values(), ids=KEEPING)
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
every_family = pytest.mark.parametrize("row", [ROWS[name] for name in FAMILY], ids=FAMILY)
