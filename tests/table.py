"""The one table of recipes that the law tests run over."""

from dataclasses import dataclass

import pytest
import torch

from ddp_compress import Recipe, exponential_warmup
from ddp_compress.recipes import dgc, sbc, topk


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
        return self.recipe.memory.momentum


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
}

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
every_family = pytest.mark.parametrize(
    "row", [ROWS["topk"], ROWS["dgc-golomb"], ROWS["sbc-golomb"]], ids=["topk", "dgc", "sbc"]
)
