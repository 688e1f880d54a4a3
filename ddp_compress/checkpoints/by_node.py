"""Checkpoints of all ranks, node by node: the ranks of a node have a slice of every tensor each."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddp_compress.checkpoints.checkpoint import Part, part_of
from ddp_compress.message.slices import range_lengths
from ddp_compress.ops.devices import to_host

Saved = Mapping[str, Any]


def by_node(checkpoints: Sequence[Saved]) -> list[list[Saved]]:
    """Those of every node, in the order of slices: [nodes][L]. Ranks without nodes are one each.

    Args:
        checkpoints: of all ranks; without nodes in their order.

    Raises:
        ValueError: one is missing, out of order, or of other nodes or another shard.

    Example:
        >>> saved = [{"saved_by": [0, 1], "part": ["slice", place, 2]} for place in (1, 0)]
        >>> [[each["part"] for each in node] for node in by_node(saved)]
        [[['slice', 0, 2], ['slice', 1, 2]]]
    """
    if not any(_is_slice(part_of(saved)) for saved in checkpoints):
        for number, saved in enumerate(checkpoints):
            _check_alone(saved, number, len(checkpoints), part_of(checkpoints[0]))
        return [[saved] for saved in checkpoints]
    found = {_place(saved): saved for saved in checkpoints}
    _, nodes, _, count = next(iter(found))
    every = [[(node, nodes, place, count) for place in range(count)] for node in range(nodes)]
    expected = [place for places in every for place in places]
    if set(found) != set(expected) or len(checkpoints) != len(expected):
        raise ValueError(
            f"checkpoints must be those of all ranks of {nodes} nodes with {count} ranks each, "
            f"but come from {', '.join(map(_words, checkpoints))}"
        )
    return [[found[place] for place in places] for places in every]


def joined(slices: Sequence[Tensor]) -> Tensor:
    """A whole tensor [N], of the slices that a node's ranks have."""
    return slices[0] if len(slices) == 1 else torch.cat([to_host(each) for each in slices])


def sliced(whole: Tensor, block: int, place: int, count: int) -> Tensor:
    """One of the L slices of a whole tensor [N].

    Example:
        >>> sliced(torch.arange(4), block=1, place=1, count=2)
        tensor([2, 3])
    """
    return whole.split(range_lengths(len(whole), block, count))[place]


def _is_slice(part: Part | None) -> bool:
    return part is not None and part[0] == "slice"


def _check_alone(saved: Saved, number: int, count: int, part: Part | None) -> None:
    if part_of(saved) != part or saved["saved_by"] not in (None, [number, count]):
        of_shard = "" if part is None else f" of shard {part[1]} of {part[2]}"
        raise ValueError(
            f"checkpoints must be those of all old ranks{of_shard} in their order, but number "
            f"{number} of {count} was saved by {_words(saved)}"
        )


def _place(saved: Saved) -> tuple[int, ...]:
    """Node, nodes, place and ranks a node."""
    part = part_of(saved)
    if part is None or not _is_slice(part) or saved["saved_by"] is None:
        raise ValueError(
            f"checkpoints must all be of nodes with several ranks, or none: one is of "
            f"{_words(saved)}"
        )
    return (*saved["saved_by"], *part[1:])


def _words(saved: Saved) -> str:
    """Whose it is."""
    part, by = part_of(saved), saved["saved_by"] or ("any", "any number")
    if part is None:
        return f"rank {by[0]} of {by[1]}"
    if part[0] == "shard":
        return f"rank {by[0]} of {by[1]} with shard {part[1]} of {part[2]}"
    return f"rank {part[1]} of {part[2]} of node {by[0]} of {by[1]}"
