"""Twin of csrc/cpu/kernel_lists.cpp.

A parameter with kernels of m elements is made of blocks: ``stride`` kernels each, whose elements
lie ``stride`` apart. A *place* counts elements kernel after kernel, a *position* as they lie in
memory. Kernels are numbered through all parameters; single elements are none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.ops.devices import to_device_of


def split_kernels(
    positions: Tensor, values: Tensor, bounds: Tensor, numels: Tensor, strides: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the kernels all of whose elements are among some entries.

    Args:
        positions: [K], int32, strictly ascending within ``[0, bounds[-1])``.
        values: [K], fp32 or fp64.
        bounds: [P + 1], int64, offsets of the P parameters, ascending from 0.
        numels: [P], int64, elements of a kernel; 1 where every element is by itself.
        strides: [P], int64, how far apart these lie.

    Returns:
        The numbers of the whole kernels [n] (int32, ascending) and the values of their elements,
        kernel after kernel; the other positions (int32, ascending) and their values.

    Raises:
        RuntimeError: shapes or dtypes do not fit, or a parameter is not made of whole blocks.

    Example:
        >>> tables = torch.tensor([0, 4]), torch.tensor([2]), torch.tensor([2])
        >>> positions = torch.tensor([0, 2, 3], dtype=torch.int32)
        >>> split_kernels(positions, torch.tensor([5.0, 6.0, 7.0]), *tables)[:2]
        (tensor([0], dtype=torch.int32), tensor([5., 6.]))
    """
    start, numel, stride = _around(positions, bounds, numels, strides)
    block, rest = _divide(positions.long() - start, numel * stride)
    within, channel = _divide(rest, stride)
    first = start + (block * stride + channel) * numel  # of the kernel's places
    firsts, kernel, counts = first.unique(return_inverse=True, return_counts=True)
    _, sizes, _ = _around(firsts, bounds, numels, strides)
    whole = (counts == sizes) & (sizes > 1)
    chosen = whole[kernel].nonzero().flatten()
    chosen = chosen[(first + within)[chosen].argsort()]
    single = ~whole[kernel]
    kernels = _numbers(firsts[whole], bounds, numels)
    return kernels.int(), values[chosen], positions[single], values[single]


def join_kernels(
    kernels: Sequence[Tensor],
    of_kernels: Sequence[Tensor],
    singles: Tensor,
    of_singles: Tensor,
    bounds: Tensor,
    numels: Tensor,
    strides: Tensor,
) -> tuple[Tensor, Tensor]:
    """Make entries of whole kernels and of single elements: `split_kernels` undone.

    Args:
        kernels: L lists [n_l], int32, of the numbers of kernels, strictly ascending.
        of_kernels: L tensors, fp32 or fp64, the values of their elements, kernel after kernel.
        singles: [S], int32, strictly ascending positions.
        of_singles: [S], their values.
        bounds: see `split_kernels`.
        numels: see `split_kernels`.
        strides: see `split_kernels`.

    Returns:
        The positions [K] (int32, ascending) and their values. What comes in several lists is there
        as often, of equals the first list's first and the single one last.

    Raises:
        RuntimeError: shapes or dtypes do not fit, or a number is out of range.

    Example:
        >>> tables = torch.tensor([0, 4]), torch.tensor([2]), torch.tensor([2])
        >>> kernel, single = torch.tensor([0]).int(), torch.tensor([3]).int()
        >>> join_kernels([kernel], [torch.tensor([5.0, 6.0])], single, torch.tensor([7.0]), *tables)
        (tensor([0, 2, 3], dtype=torch.int32), tensor([5., 6., 7.]))
    """
    places = [places_of(each, bounds, numels) for each in kernels]
    found = [positions_of(each, bounds, numels, strides) for each in places]
    positions, order = torch.cat([*found, singles.long()]).sort(stable=True)
    return positions.int(), torch.cat([*of_kernels, of_singles])[order]


def by_place(
    values: Sequence[Tensor], bounds: Tensor, numels: Tensor, strides: Tensor
) -> list[Tensor]:
    """The kernels [n, m] of every parameter, one row after another.

    Args:
        values: chunks of the message, which hold whole parameters.
        bounds: see `split_kernels`.
        numels: see `split_kernels`.
        strides: see `split_kernels`.
    """
    flat = values[0] if len(values) == 1 else torch.cat(list(values))
    parts = flat.split(bounds.diff().tolist())
    return [
        part.view(-1, m, stride).transpose(1, 2).reshape(-1, m)
        for part, m, stride in zip(parts, numels.tolist(), strides.tolist(), strict=True)
    ]


def starts_of(bounds: Tensor, numels: Tensor) -> Tensor:
    """Offsets of the parameters among all kernels, [P + 1] int64."""
    counts = torch.where(numels > 1, bounds.diff() // numels, 0)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def positions_of(places: Tensor, bounds: Tensor, numels: Tensor, strides: Tensor) -> Tensor:
    """The positions [K] int64 of places [K]."""
    start, numel, stride = _around(places, bounds, numels, strides)
    kernel, within = _divide(places.long() - start, numel)
    block, channel = _divide(kernel, stride)
    return start + (block * numel + within) * stride + channel


def places_of(kernels: Tensor, bounds: Tensor, numels: Tensor) -> Tensor:
    """The places [sum of m] int64 of all elements of these kernels, kernel after kernel."""
    starts = to_device_of(starts_of(bounds, numels), kernels)
    owner = torch.searchsorted(starts, kernels.long(), right=True) - 1
    start, numel = (to_device_of(table, kernels)[owner] for table in (bounds, numels))
    first = start + (kernels - starts[owner]) * numel
    ends = numel.cumsum(0)
    within = torch.ones_like(first).repeat_interleave(numel).cumsum(0) - 1
    return (first - ends + numel).repeat_interleave(numel) + within


def _numbers(places: Tensor, bounds: Tensor, numels: Tensor) -> Tensor:
    """The numbers [n] int64 of the kernels that these places [n] lie in."""
    owner = torch.searchsorted(bounds, places, right=True) - 1
    return starts_of(bounds, numels)[owner] + (places - bounds[owner]) // numels[owner]


def _around(
    positions: Tensor, bounds: Tensor, numels: Tensor, strides: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the parameter that each position or place lies in: start, kernel size, stride."""
    edges = to_device_of(bounds, positions)
    owner = torch.searchsorted(edges, positions.long(), right=True) - 1
    tables = (to_device_of(table, positions)[owner] for table in (bounds, numels, strides))
    start, numel, stride = tables
    return start, numel, stride


def _divide(number: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    quotient = number.div(by, rounding_mode="floor")
    return quotient, number - quotient * by
