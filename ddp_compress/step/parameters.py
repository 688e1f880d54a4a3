"""The parameters that a state is made for: their names, and how their gradients lie in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ddp_compress.checkpoints.checkpoint import Part
from ddp_compress.message.conv_kernels import ConvKernel, convolutions, kernel_of
from ddp_compress.message.layout import Layout
from ddp_compress.message.memory_format import dim_order
from ddp_compress.message.names import clean_name
from ddp_compress.message.presence import Presence
from ddp_compress.message.slices import range_lengths
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host
from ddp_compress.step.sharded_model import is_sharded, local_of, reshard


class Parameters:
    """A bare model's parameters, but for those that DDP is told to leave alone.

    Of a model that is sharded, each is as large as this rank's shard.

    Args:
        module: the bare model.

    Attributes:
        named: by `clean_name`.

    Example:
        >>> linear = nn.Linear(3, 2)
        >>> Parameters(linear).layout([linear.bias, linear.weight])
        Layout(names=('bias', 'weight'), sizes=(2, 6), kernels=(ConvKernel(...), ConvKernel(...)))
    """

    def __init__(self, module: nn.Module) -> None:
        sharded, ignored = is_sharded(module), ignored_parameters(module)
        if sharded:
            reshard(module)
        named = module.named_parameters()
        self.named = {clean_name(n): p for n, p in named if n not in ignored}
        self._wholes: dict[str, int] = {}  # elements of parameters of which a shard is here
        if sharded:
            self._wholes = {name: p.numel() for name, p in self.named.items()}
        convs, here = convolutions(module), self.here
        self._kernels = {
            name: kernel_of(here[name]) if id(p) in convs else ConvKernel()
            for name, p in self.named.items()
        }
        self._strides = {name: p.stride() for name, p in here.items()}

    @cached_property
    def _names(self) -> dict[int, str]:
        return {id(p): name for name, p in self.named.items()}

    def __getstate__(self) -> dict[str, object]:
        """All but names by id, which are another copy's."""
        return {name: value for name, value in self.__dict__.items() if name != "_names"}

    @property
    def here(self) -> Mapping[str, Tensor]:
        """What of them is on this rank, by name: they themselves, or a shard of each."""
        return {n: local_of(p) for n, p in self.named.items()} if self.sharded else self.named

    @property
    def sharded(self) -> bool:
        """Whether of any of them a shard alone is on this rank, be it all of it."""
        return bool(self._wholes)

    @property
    def device(self) -> torch.device:
        """Of the first; the CPU where there are none."""
        return next((p.device for p in self.named.values()), torch.device("cpu"))

    @property
    def numel(self) -> int:
        """Elements in all."""
        return sum(p.numel() for p in self.here.values())

    def layout(self, parameters: Sequence[Tensor]) -> Layout:
        """The layout of a bucket that holds these parameters.

        Raises:
            ValueError: a parameter is not the model's, or lies otherwise in memory than it did.
        """
        unknown = [p for p in parameters if id(p) not in self._names]
        if unknown:
            raise ValueError(
                f"{len(unknown)} parameters, the first of shape {tuple(unknown[0].shape)}, are "
                "not of the model that this state was made for"
            )
        names = [self._names[id(p)] for p in parameters]
        for name, parameter in zip(names, map(local_of, parameters), strict=True):
            if parameter.stride() != self._strides[name]:
                raise ValueError(
                    f"{name} has strides {parameter.stride()}, and had {self._strides[name]} when "
                    "this state was made: DDP and residuals would permute its gradient. Convert "
                    "the model, as to channels_last, before wrapping it"
                )
        return self.layout_of(names)

    def layout_of(self, names: Sequence[str]) -> Layout:
        """The layout of parameters with these names."""
        sizes = tuple(local_of(self.named[name]).numel() for name in names)
        wholes = tuple(self._wholes[name] for name in names) if self.sharded else ()
        return Layout(tuple(names), sizes, tuple(self._kernels[name] for name in names), wholes)

    @property
    def blocks(self) -> dict[str, int]:
        """Elements that no slice may tear apart, by name, where it is more than one."""
        blocks = {name: kernel.block for name, kernel in self._kernels.items()}
        return {name: block for name, block in blocks.items() if block > 1}

    def numels(self, part: Part | None) -> dict[str, int]:
        """Elements of every parameter, or of one slice of each."""
        numels = {name: p.numel() for name, p in self.here.items()}
        if part is None or part[0] != "slice":
            return numels
        _, rank, count = part
        blocks = self.blocks
        return {n: range_lengths(size, blocks.get(n, 1), count)[rank] for n, size in numels.items()}

    def layout_of_given(self, tensors: Mapping[str, Tensor]) -> Layout:
        """The layout of tensors for some parameters, by name.

        Raises:
            KeyError: a name is no parameter's.
            ValueError: there are none, one has another number of elements, or dtypes differ; or
                see `layout`.
        """
        if not tensors:
            raise ValueError("tensors must hold at least one tensor")
        for name, tensor in tensors.items():
            if name not in self.named:
                raise KeyError(f"{name} is no parameter of the model")
            expected = local_of(self.named[name]).numel()
            if tensor.numel() != expected:
                raise ValueError(f"{name} has {tensor.numel()} elements, expected {expected}")
        dtypes = {tensor.dtype for tensor in tensors.values()}
        if len(dtypes) > 1:
            raise ValueError(f"tensors have dtypes {sorted(map(str, dtypes))}, expected one")
        return self.layout([self.named[name] for name in tensors])

    def presence(self, came: Sequence[Tensor], afresh: bool) -> Presence:
        """Which of a sharded model's parameters have a gradient, once a pass has brought some.

        Args:
            came: those that the pass has brought one.
            afresh: whether these are all. Else those that have one of an earlier pass have it, too:
                ranks that sum theirs upon it count on everybody's.
        """
        ids = set(map(id, came))
        named = self.named.items()
        old = () if afresh else (n for n, p in named if p.grad is not None and p.requires_grad)
        return Presence([*old, *(name for name, p in named if id(p) in ids)])

    def digest(self) -> int:
        """A number that ranks with equal values share."""
        total = 0
        for parameter in self.here.values():
            flat = to_host(parameter.detach().flatten())
            total = host.crc32(flat.view(torch.uint8), total)
        return total

    def stand_in(self, parameters: Sequence[Tensor]) -> Layout:
        """A layout of the right sizes, whatever may be wrong with the parameters."""
        names = [self._names.get(id(p), f"unknown {i}") for i, p in enumerate(parameters)]
        kernels = tuple(self._kernels.get(name, ConvKernel()) for name in names)
        return Layout(tuple(names), tuple(p.numel() for p in parameters), kernels)

    def is_copy_of(self, others: Parameters) -> bool:
        """Whether these are other tensors of the same names, as in a copy of the model.

        Raises:
            ValueError: they are, but of other shapes or memory formats.
        """
        named, theirs = self.named, others.named
        if named.keys() != theirs.keys() or all(p is theirs[n] for n, p in named.items()):
            return False
        for name, parameter in named.items():
            here, there = ((tuple(p.shape), dim_order(p)) for p in (parameter, theirs[name]))
            if here != there:
                raise ValueError(
                    f"{name} has shape {here[0]} and lies in memory by its dimensions {here[1]}; "
                    f"this state was made for {there[0]} and {there[1]}"
                )
        return True


def ignored_parameters(module: nn.Module) -> set[str]:
    """Names of a bare model's parameters that DDP is told to leave alone.

    Example:
        >>> from torch.nn.parallel import DistributedDataParallel
        >>> model = nn.Linear(2, 1)
        >>> ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        >>> ignore(model, ["bias"])
        >>> ignored_parameters(model)
        {'bias'}
    """
    return set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
