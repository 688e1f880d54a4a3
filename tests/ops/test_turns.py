"""Kernels of several phases tell the same however many of their blocks run at once."""

from typing import Any

import pytest
import torch

from ddp_compress.ops import reference

NUMEL = 30_000
GENERATOR = torch.Generator().manual_seed(0)
VALUES = torch.randn(NUMEL, generator=GENERATOR)
ROUNDED = (8 * VALUES).round() / 8  # ties, for which top-k searches many rounds
POSITIONS = torch.arange(0, NUMEL, 3, dtype=torch.int32)
KEYS = torch.randint(-(2**40), 2**40, (NUMEL,), generator=GENERATOR)
BOUNDS = torch.tensor([0, 9000, 9001, 21_000, NUMEL])
GROUPS = {
    "bounds": BOUNDS,
    "groups": torch.tensor([0, 0, -1, 1]),
    "ks": torch.tensor([900, 4000]),
    "salts": torch.tensor([1, 2, 3, 4]),
}
MEMORY: Any = [torch.zeros(NUMEL)], [torch.ones(NUMEL)], 0.5
COUNTS = torch.tensor([12_000, 0, 1, 17_999])
NOTHING_LEFT: dict[str, Any] = {"sums": [], "next_momenta": []}

CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "topk": ("topk", ([VALUES], *MEMORY), {**GROUPS, **NOTHING_LEFT, "heavier": False}),
    "topk of ties": ("topk", ([ROUNDED], *MEMORY), {**GROUPS, **NOTHING_LEFT, "heavier": False}),
    "topk of a side": ("topk", ([ROUNDED], *MEMORY), {**GROUPS, **NOTHING_LEFT, "heavier": True}),
    "segment_means": ("segment_means", (VALUES, COUNTS), {}),
    "largest": ("largest", (KEYS, 5000), {}),
    "golomb_encode": ("golomb_encode", (POSITIONS,), {"bounds": BOUNDS}),
}


def tensors(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize("name", CALLS)
def test_the_result_does_not_depend_on_how_many_blocks_run_at_once(on_device, name):
    """The emulation draws their number, from one to all, and their order, anew for each call."""
    op, args, tables = CALLS[name]
    expected = tensors(getattr(reference, op)(*args, **tables))
    for _ in range(15):
        found = tensors(on_device(op, *args, **tables))
        assert all(torch.equal(*each) for each in zip(found, expected, strict=True))
