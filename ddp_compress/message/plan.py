"""What a message of several flat tensors may hold: known to every rank beforehand."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from ddp_compress.message.conv_kernels import ConvKernel, ConvKernels
from ddp_compress.message.device_tables import DeviceTables
from ddp_compress.message.layout import Layout, Scope
from ddp_compress.message.runs import Run, runs_of
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of, to_host

MAX_NUMEL = 2**31 - 1  # positions in a message are int32


@dataclass(frozen=True)
class Tables:
    """What a message of several flat tensors holds, whatever the density; see `Plan`.

    Args:
        layouts: the message's chunks in order.
        scope: what one top-k runs over: every parameter, every chunk, or the whole message.
        min_numel: parameters with fewer elements are uncompressed.

    Example:
        >>> parts = Tables((Layout(("weight", "bias"), (600, 2)),), "tensor", min_numel=3)
        >>> parts.bounds, parts.groups
        (tensor([  0, 600, 602]), tensor([ 0, -1]))
    """

    layouts: tuple[Layout, ...]
    scope: Scope
    min_numel: int = 0

    @cached_property
    def at(self) -> Callable[[float], Plan]:
        """The plan of a density. Two are kept: most steps repeat one, a warm-up repeats none."""
        return lru_cache(maxsize=2)(
            lambda density: Plan(self.layouts, self.scope, density, self.min_numel)
        )

    @cached_property
    def numel(self) -> int:
        """Elements in all chunks, N."""
        return sum(layout.numel for layout in self.layouts)

    @cached_property
    def digest(self) -> int:
        """A number that ranks with equal tables share."""
        return zlib.crc32(repr((self.layouts, self.scope, self.min_numel)).encode())

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first position of every chunk."""
        return tuple(accumulate((layout.numel for layout in self.layouts[:-1]), initial=0))

    @cached_property
    def bounds(self) -> Tensor:
        """Offsets of the P parameters, [P + 1] int64, from 0 to N."""
        return _table(accumulate(self._sizes, initial=0), torch.int64)

    @cached_property
    def kernels(self) -> ConvKernels:
        """The kernels of the P parameters."""
        each = [layout.kernels or (ConvKernel(),) * len(layout.sizes) for layout in self.layouts]
        return ConvKernels(self.bounds, [kernel for kernels in each for kernel in kernels])

    @cached_property
    def groups(self) -> Tensor:
        """The top-k group of every parameter, [P] int64; -1 for the uncompressed ones."""
        number = {group: i for i, group in enumerate(self._group_ends)}
        return _table((number.get(key, -1) for key in self._group_keys), torch.int64)

    @cached_property
    def group_sizes(self) -> tuple[int, ...]:
        """Elements of every group, [G]."""
        sizes = dict.fromkeys(self._group_ends, 0)
        for key, size in zip(self._group_keys, self._sizes, strict=True):
            if key >= 0:
                sizes[key] += size
        return tuple(sizes.values())

    @cached_property
    def group_ends(self) -> Tensor:
        """The position behind every group's last parameter, [G] int32."""
        return _table(self._group_ends.values(), torch.int32)

    @cached_property
    def uncompressed(self) -> Tensor:
        """The positions that always travel, [D] int32."""
        ends = accumulate(self._sizes)
        spans = [
            host.arange(end - size, end, dtype=torch.int32)
            for key, size, end in zip(self._group_keys, self._sizes, ends, strict=True)
            if key < 0
        ]
        return torch.cat(spans) if spans else _table([], torch.int32)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the P parameters."""
        return tuple(name for layout in self.layouts for name in layout.names)

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """The name of every group's first parameter, [G]."""
        first: dict[int, str] = {}
        for key, name in zip(self._group_keys, self.names, strict=True):
            first.setdefault(key, name)
        return tuple(first[key] for key in self._group_ends)

    @cached_property
    def all_positions(self) -> Tensor | None:
        """The positions [K] int32 of all parameters that are compressed; None where all are."""
        if not len(self.uncompressed):
            return None
        uncompressed = host.zeros(self.numel, dtype=torch.bool)
        uncompressed[self.uncompressed.long()] = True
        return (~uncompressed).nonzero().flatten().int()

    @cached_property
    def runs(self) -> list[Run]:
        """The other parameters, neighbours together."""
        return runs_of(self)

    def on(self, device: torch.device) -> DeviceTables:
        """Those that are needed on a device; they stay there."""
        if device not in self._on:
            self._on[device] = DeviceTables.of(self, device)
        return self._on[device]

    @cached_property
    def _on(self) -> dict[torch.device, DeviceTables]:
        return {}

    @cached_property
    def _sizes(self) -> list[int]:
        return [size for layout in self.layouts for size in layout.sizes]

    @cached_property
    def _group_keys(self) -> list[int]:
        """A group for every parameter, ascending, with gaps; -1 for uncompressed and empty ones."""
        keys: list[int] = []
        for chunk, layout in enumerate(self.layouts):
            for size, whole in zip(layout.sizes, layout.wholes or layout.sizes, strict=True):
                key = {"tensor": len(keys), "bucket": chunk, "model": 0}[self.scope]
                keys.append(-1 if size == 0 or whole < self.min_numel else key)
        return keys

    @cached_property
    def _group_ends(self) -> dict[int, int]:
        """By group, in order: the position behind its last parameter."""
        ends = accumulate(self._sizes)
        return {key: end for key, end in zip(self._group_keys, ends, strict=True) if key >= 0}


@lru_cache(maxsize=1024)
def tables_for(layouts: tuple[Layout, ...], scope: Scope, min_numel: int = 0) -> Tables:
    """The `Tables` for these arguments, kept between steps because all of them repeat it."""
    return Tables(layouts, scope, min_numel)


@dataclass(frozen=True)
class Plan:
    """What a message of several flat tensors may hold: known to every rank beforehand.

    Positions count through the whole message. Parameters smaller than ``min_numel`` are
    *uncompressed*: all their elements travel, without positions.

    Args:
        layouts: the message's chunks in order.
        scope: what one top-k runs over: every parameter, every chunk, or the whole message.
        density: share of the elements to send, in (0, 1].
        min_numel: parameters with fewer elements are uncompressed.

    Attributes:
        tables: all that does not depend on the density, shared with plans of other densities.

    Raises:
        ValueError: the message is too large for 32-bit positions.

    Example:
        >>> plan = Plan((Layout(("weight", "bias"), (600, 2)),), "tensor", 0.01, min_numel=3)
        >>> plan.numel, plan.k, plan.uncompressed
        (602, 6, tensor([600, 601], dtype=torch.int32))
    """

    layouts: tuple[Layout, ...]
    scope: Scope
    density: float
    min_numel: int = 0

    def __post_init__(self) -> None:
        if self.numel > MAX_NUMEL:
            raise ValueError(
                f"a message of {self.numel} elements is too large: positions have 31 bits. "
                "Lower DDP's bucket_cap_mb, or use scope='tensor' or scope='bucket'"
            )

    @cached_property
    def tables(self) -> Tables:
        """See above."""
        return tables_for(self.layouts, self.scope, self.min_numel)

    @cached_property
    def digest(self) -> int:
        """A number that ranks with equal plans share."""
        return zlib.crc32(repr((self.density, self.layout_digest)).encode())

    @cached_property
    def ks(self) -> Tensor:
        """The most entries every group may send, [G] int64: density of its elements, at least 1."""
        return _table((entry_count(self.density, n) for n in self.tables.group_sizes), torch.int64)

    @cached_property
    def k(self) -> int:
        """The most entries the message may hold, K."""
        return int(self.ks.sum())

    def counts(self, indices: Tensor | None) -> Tensor:
        """How many of the ascending positions [K] lie in every group: [G] int64, on the host."""
        if indices is None:  # those of all positions, which a density of 1 stands for
            return self.ks
        ends = to_host(torch.searchsorted(indices, to_device_of(self.group_ends, indices)))
        return ends.diff(prepend=ends.new_zeros(1))

    @cached_property
    def numel(self) -> int:
        """Elements in all chunks, N."""
        return self.tables.numel

    @cached_property
    def layout_digest(self) -> int:
        """A number that ranks share whose plans are equal but for the density."""
        return self.tables.digest

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first position of every chunk."""
        return self.tables.starts

    @cached_property
    def bounds(self) -> Tensor:
        """Offsets of the P parameters, [P + 1] int64, from 0 to N."""
        return self.tables.bounds

    @cached_property
    def kernels(self) -> ConvKernels:
        """The kernels of the P parameters."""
        return self.tables.kernels

    @cached_property
    def groups(self) -> Tensor:
        """The top-k group of every parameter, [P] int64; -1 for the uncompressed ones."""
        return self.tables.groups

    @cached_property
    def group_ends(self) -> Tensor:
        """The position behind every group's last parameter, [G] int32."""
        return self.tables.group_ends

    @cached_property
    def uncompressed(self) -> Tensor:
        """The positions that always travel, [D] int32."""
        return self.tables.uncompressed

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the P parameters."""
        return self.tables.names

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """The name of every group's first parameter, [G]."""
        return self.tables.group_names

    @cached_property
    def all_positions(self) -> Tensor | None:
        """The positions [K] int32 of all parameters that are compressed; None where all are."""
        return self.tables.all_positions


def plan_for(layouts: tuple[Layout, ...], scope: Scope, density: float, min_numel: int) -> Plan:
    """The `Plan` for these arguments, kept between steps because most steps repeat it."""
    return tables_for(layouts, scope, min_numel).at(density)


def _table(values: Iterable[int], dtype: torch.dtype) -> Tensor:
    return host.tensor(list(values), dtype=dtype)


def entry_count(density: float, numel: int) -> int:
    """How many of N elements a density stands for: ``max(1, round(density * N))``.

    Example:
        >>> entry_count(0.01, 250), entry_count(0.001, 10)
        (3, 1)
    """
    return min(numel, max(1, math.floor(density * numel + 0.5)))
