"""A model's buffers, such as the running statistics of a batch norm, from round to round."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ddp_compress.local.anchor import widest
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host


class Buffers:
    """What a model's buffers were after the last round, and how far they have moved since.

    Args:
        module: the bare model.
        ignored: names of buffers that ranks do not share.

    Attributes:
        last_synced: as after the last round, by name.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> buffers = Buffers(norm, ignored=())
        >>> _ = norm.running_mean.fill_(3.0)
        >>> names = buffers.changed()
        >>> names, buffers.moved(names)
        (['running_mean'], tensor([3., 3.]))
        >>> buffers.advance(torch.tensor([1.0, 2.0]), buffers.integer_bytes(names), names)
        >>> buffers.write()
        >>> norm.running_mean
        tensor([1., 2.])
    """

    def __init__(self, module: nn.Module, ignored: Iterable[str]) -> None:
        self._module = module
        self._ignored = set(ignored)
        self.keep()

    @property
    def dtype(self) -> torch.dtype:
        """Of means: fp32, or fp64 where a buffer is."""
        return widest(self.last_synced[name].dtype for name in self.means_of(self.last_synced))

    def means_of(self, names: Iterable[str]) -> list[str]:
        """Those of some buffers that are averaged: the floating-point ones."""
        return [name for name in names if self.last_synced[name].is_floating_point()]

    def integers_of(self, names: Iterable[str]) -> list[str]:
        """Those that become rank 0's: all others, such as counts."""
        return [name for name in names if not self.last_synced[name].is_floating_point()]

    def numel(self, names: Iterable[str]) -> int:
        """Elements of those that are averaged, N."""
        return sum(self.last_synced[name].numel() for name in self.means_of(names))

    @property
    def digest(self) -> int:
        """A number that ranks with equal buffers share."""
        parts = [to_host(b.flatten()).view(torch.uint8) for b in self.last_synced.values()]
        return host.crc32(torch.cat([host.empty(0, dtype=torch.uint8), *parts]))

    def changed(self) -> list[str]:
        """Names of those that have anything to tell the other ranks.

        Raises:
            ValueError: the model's buffers have other names or shapes than after the last round.
        """
        now = self._now()
        ours, expected = _shapes(now), _shapes(self.last_synced)
        if ours != expected:
            raise ValueError(
                f"buffers are now {ours}, expected as before {expected}: a model that changes them "
                "needs buffers='keep'"
            )
        moved = {name: self._moved(now, name).any() for name in self.means_of(now)}
        integers = {
            name: (now[name] != self.last_synced[name]).any() for name in self.integers_of(now)
        }
        return [name for name in self.last_synced if (moved | integers)[name]]

    def moved(self, names: Sequence[str]) -> Tensor:
        """Those of some that are averaged, now - last_synced: [N] on the host; 0 where not finite.

        So a mask of -inf stays, and one rank's NaN does not reach the others.
        """
        now = self._now()
        parts = [to_host(self._moved(now, name).flatten()) for name in self.means_of(names)]
        return torch.cat([host.empty(0, dtype=self.dtype), *parts])

    def integer_bytes(self, names: Sequence[str]) -> Tensor:
        """Those of some that become rank 0's, now, as bytes: uint8, on the host."""
        now = self._now()
        parts = [to_host(now[name].flatten().view(torch.uint8)) for name in self.integers_of(names)]
        return torch.cat([host.empty(0, dtype=torch.uint8), *parts])

    def advance(self, mean: Tensor, integers: Tensor, names: Sequence[str]) -> None:
        """Move some by a mean of `moved`, and to one rank's `integer_bytes`."""
        means = [self.last_synced[name] for name in self.means_of(names)]
        for buffer, part in zip(means, mean.split([b.numel() for b in means]), strict=True):
            buffer.copy_(buffer.to(mean.dtype) + part.view(buffer.shape).to(buffer.device))
        rest = [self.last_synced[name] for name in self.integers_of(names)]
        for buffer, part in zip(rest, integers.split([b.nbytes for b in rest]), strict=True):
            buffer.copy_(part.clone().view(buffer.dtype).view(buffer.shape))

    def keep(self) -> None:
        """Move to this rank's own."""
        self.last_synced = {name: b.clone() for name, b in self._now().items()}

    def write(self) -> None:
        """Put them back into the model, where it still has them."""
        for name, buffer in self._now().items():
            if name in self.last_synced and self.last_synced[name].shape == buffer.shape:
                buffer.copy_(self.last_synced[name])

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over values of equal shapes, by name."""
        for name, buffer in self.last_synced.items():
            buffer.copy_(values[name])

    def _moved(self, now: Mapping[str, Tensor], name: str) -> Tensor:
        difference = now[name].to(self.dtype) - self.last_synced[name].to(self.dtype)
        return difference.nan_to_num(0.0, 0.0, 0.0)

    def _now(self) -> dict[str, Tensor]:
        """The model's own. Modules may have put new tensors in their places."""
        named = self._module.named_buffers()
        return {name: b.detach() for name, b in named if name not in self._ignored}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in tensors.items()}
