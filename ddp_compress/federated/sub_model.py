"""A smaller model, cut out of a full one: some units of every group."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from torch import Tensor, nn

from ddp_compress.federated.units import WIDTHS, Axis, Units
from ddp_compress.ops import host

Index = tuple[Tensor, ...]
"""Entries of a tensor's leading dimensions: ``tensor[index]`` is a smaller one, re-packed."""


def tensors_of(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers, by name."""
    return chain(module.named_parameters(recurse=recurse), module.named_buffers(recurse=recurse))


def indices(model: nn.Module, units: Units, kept: Mapping[str, Tensor]) -> dict[str, Index]:
    """Where a sub-model's tensors lie in those of the full one, by name.

    Args:
        model: the full one.
        units: what its tensors' dimensions are.
        kept: of every group the units that stay, ascending.

    Example:
        >>> from ddp_compress.federated.units import hidden_units
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
        >>> index = indices(model, hidden_units(model), {"0": torch.tensor([0, 2])})
        >>> [each.tolist() for each in index["1.weight"]]
        [[[0]], [0, 2]]
    """
    found = {}
    for name, tensor in tensors_of(model):
        axes = units.axes.get(name.rpartition(".")[0], ())
        dimensions = zip(axes, tensor.shape, strict=False)
        found[name] = _mesh([_entries(*each, kept).to(tensor.device) for each in dimensions])
    return found


def shrunk(model: nn.Module, units: Units, index: Mapping[str, Index]) -> nn.Module:
    """A copy of a model that has the tensors of a sub-model, and says so of its layers' widths.

    Args:
        model: the full one, left alone.
        units: what its tensors' dimensions are.
        index: see `indices`.
    """
    small = copy.deepcopy(model)
    for name, tensor in tensors_of(small):
        tensor.data = tensor.data[index[name]].contiguous()
    for name in units.axes:
        module = small.get_submodule(name)
        largest = max((tensor for _, tensor in tensors_of(module, False)), key=Tensor.dim)
        for width, size in zip(WIDTHS[type(module)], largest.shape, strict=False):
            setattr(module, width, size)
    return small


def _entries(axis: Axis, size: int, kept: Mapping[str, Tensor]) -> Tensor:
    """The entries of a dimension that belong to kept units."""
    if axis.group is None:
        return host.arange(size)
    return (kept[axis.group].unsqueeze(1) * axis.block + host.arange(axis.block)).flatten()


def _mesh(dimensions: Sequence[Tensor]) -> Index:
    """Where these entries of the dimensions cross."""
    last = len(dimensions) - 1
    return tuple(each.view(-1, *[1] * (last - i)) for i, each in enumerate(dimensions))
