"""What a step costs a rank in `scaling.py`, as its statistics count it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

import ddp_compress as dc

WARM_UP = 2
Counts = dict[str, float]  # of one rank, per step


def gradient(numel: int, step: int) -> Tensor:
    """A gradient [numel] of this rank."""
    common = torch.Generator().manual_seed(step)
    own = torch.Generator().manual_seed(1000 * (dist.get_rank() + 1) + step)
    signal = torch.randn(numel, generator=common)
    return signal.add_(torch.randn(numel, generator=own)).pow_(3)


def measure(recipe: dc.Recipe, numel: int, steps: int) -> Counts:
    """What a recipe costs this rank in a step."""
    model = nn.Module()
    model.register_parameter("all", nn.Parameter(torch.empty(numel)))
    state = dc.CompressionState(model, recipe)
    before: Counts = {}
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            before = state.stats.state_dict()
        state.reduce({"all": gradient(numel, step)})
    after = state.stats.state_dict()
    return {name: (after[name] - before[name]) / steps for name in after}
