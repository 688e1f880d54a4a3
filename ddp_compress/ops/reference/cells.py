"""Twin of csrc/cpu/cells.cpp: values that are divided into few cells, a mean for each."""

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.rans import MAX_ALPHABET
from ddp_compress.ops.reference.segment_means import segment_means


def _groups(counts: Tensor, numel: int) -> Tensor:
    """The group of every value, [K] int64."""
    if (counts < 0).any() or int(counts.sum()) != numel:
        raise RuntimeError(f"counts sum to {int(counts.sum())}, expected {numel}, and none below 0")
    return host.arange(len(counts)).repeat_interleave(counts)


def _check_cells(cells: Tensor, width: int) -> None:
    if len(cells) and int(cells.max()) >= width:
        raise RuntimeError(f"cells must lie below the width, {width}, got {int(cells.max())}")


def cell_numbers(values: Tensor, counts: Tensor, edges: Tensor) -> Tensor:
    """The cell of every value: by its magnitude among its group's edges, and by its sign.

    Zeros are in cell 0. A magnitude that is below no more than `i` edges of `E` is in level
    `E - i + 1`: negative values of level `l` are in cell `2 l`, positive ones in `2 l - 1`. A NaN
    is below no edge, and negative.

    Args:
        values: [K], fp32 or fp64, group after group.
        counts: [G], int64, values of each group; they sum to K.
        edges: [G, E], fp64; up to 31 of each group.

    Returns:
        [K], uint8.

    Raises:
        RuntimeError: the counts do not sum to K, or there are too many edges.

    Example:
        >>> values, edges = torch.tensor([0.5, -2.0, 0.0, 3.0]), torch.tensor([[1.0, 2.0]])
        >>> cell_numbers(values, torch.tensor([4]), edges.double())
        tensor([1, 6, 0, 5], dtype=torch.uint8)
    """
    groups = _groups(counts, len(values))
    if 2 * (edges.shape[1] + 1) >= MAX_ALPHABET:
        raise RuntimeError(f"edges has {edges.shape[1]} columns, expected up to 31")
    level = 1 + (~(values.abs()[:, None] < edges[groups])).sum(1)
    return ((2 * level - (values > 0).long()) * (values != 0)).byte()


def cell_means(values: Tensor, cells: Tensor, counts: Tensor, width: int) -> Tensor:
    """The exact mean of the values in every cell of every group; see `segment_means`.

    Args:
        values: [K], fp32 or fp64, group after group.
        cells: [K], uint8, below ``width``.
        counts: [G], int64, values of each group; they sum to K.
        width: cells that a group has, 1 to 65.

    Returns:
        [G, width], fp32; 0 where a cell is empty.

    Raises:
        RuntimeError: the counts do not sum to K, or a cell or the width is too large.

    Example:
        >>> values, cells = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1, 0, 1]).byte()
        >>> cell_means(values, cells, torch.tensor([3]), width=3)
        tensor([[2., 3., 0.]])
    """
    if not 1 <= width <= MAX_ALPHABET:
        raise RuntimeError(f"width must lie within [1, {MAX_ALPHABET}], got {width}")
    _check_cells(cells, width)
    numbers = _groups(counts, len(cells)) * width + cells
    sizes = torch.bincount(numbers, minlength=len(counts) * width)
    return segment_means(values[numbers.argsort()], sizes).view(-1, width)


def cell_values(table: Tensor, cells: Tensor, counts: Tensor) -> Tensor:
    """What stands for the values of every cell: `cell_numbers` and `cell_means` turned around.

    Args:
        table: [G, width], fp32.
        cells: [K], uint8, below ``width``, group after group.
        counts: [G], int64, values of each group; they sum to K.

    Returns:
        [K], fp32.

    Raises:
        RuntimeError: the counts do not sum to K, or a cell is too large.

    Example:
        >>> cells = torch.tensor([1, 0, 1]).byte()
        >>> cell_values(torch.tensor([[2.0, 3.0]]), cells, torch.tensor([3]))
        tensor([3., 2., 3.])
    """
    _check_cells(cells, table.shape[1])
    return table[_groups(counts, len(cells)), cells.long()]
