"""Ranks that share nodes: any function of these tests, run in nodes of several ranks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from ddp_compress import CompressionState


def on_nodes(ranks_per_node: int, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, in which every new state is one of nodes of so many ranks."""
    node, _ = dist.new_subgroups(ranks_per_node)
    make = CompressionState.__init__

    def make_within(self: CompressionState, *given: Any, **options: Any) -> None:
        make(self, *given, **{"within": node, **options})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompressionState, "__init__", make_within)
        return function(*args)
