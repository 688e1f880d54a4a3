"""A model's buffers, such as the running statistics of a batch norm, from round to round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ddp_compress import host, ops
from ddp_compress.anchor import widest
from ddp_compress.devices import on_host


class Buffers:
    """What a model's buffers were after the last round, and how far they have moved since.

    Args:
        module: the bare model.
        ignored: names of buffers that ranks do not share.

    Attributes:
        then: as after the last round, by name.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> buffers = Buffers(norm, ignored=())
        >>> _ = norm.running_mean.fill_(3.0)
        >>> buffers.moved()
        tensor([3., 3., 0., 0.])
        >>> buffers.advance(torch.tensor([1.0, 2.0, 0.0, 0.0]), buffers.others())
        >>> buffers.write()
        >>> norm.running_mean
        tensor([1., 2.])
    """

    def __init__(self, module: nn.Module, ignored: Iterable[str]) -> None:
        self._module = module
        self._ignored = set(ignored)
        self.keep()

    @property
    def _means(self) -> list[str]:
        return [name for name, b in self.then.items() if b.is_floating_point()]

    @property
    def _rest(self) -> list[str]:
        return [name for name, b in self.then.items() if not b.is_floating_point()]

    @property
    def dtype(self) -> torch.dtype:
        """Of means: fp32, or fp64 where a buffer is."""
        return widest(self.then[name].dtype for name in self._means)

    @property
    def numel(self) -> int:
        """Elements of all floating-point buffers, N."""
        return sum(self.then[name].numel() for name in self._means)

    @property
    def digest(self) -> int:
        """A number that ranks with equal buffers share."""
        parts = [on_host(b.flatten()).view(torch.uint8) for b in self.then.values()]
        return int(ops.checksum(torch.cat([host.empty(0, dtype=torch.uint8), *parts])))

    def moved(self) -> Tensor:
        """Floating-point buffers now - then, [N] on the host; 0 where that is not finite.

        So a mask of -inf stays, and one rank's NaN does not reach the others.

        Raises:
            ValueError: the model's buffers have other names or shapes than then.
        """
        ours, expected = _shapes(self._now()), _shapes(self.then)
        if ours != expected:
            raise ValueError(
                f"buffers are now {ours}, expected as before {expected}: a model that changes them "
                "needs buffers='keep'"
            )
        now = self._now()
        parts = [
            on_host((now[name].to(self.dtype) - self.then[name].to(self.dtype)).flatten())
            for name in self._means
        ]
        return torch.cat([host.empty(0, dtype=self.dtype), *parts]).nan_to_num(0.0, 0.0, 0.0)

    def others(self) -> Tensor:
        """All other buffers now, such as counts, as bytes: uint8, on the host."""
        now = self._now()
        parts = [on_host(now[name].flatten().view(torch.uint8)) for name in self._rest]
        return torch.cat([host.empty(0, dtype=torch.uint8), *parts])

    def advance(self, mean: Tensor, others: Tensor) -> None:
        """Move by a mean of `moved`, and to one rank's `others`."""
        means = [self.then[name] for name in self._means]
        for buffer, part in zip(means, mean.split([b.numel() for b in means]), strict=True):
            buffer.copy_(buffer.to(mean.dtype) + part.view(buffer.shape).to(buffer.device))
        rest = [self.then[name] for name in self._rest]
        for buffer, part in zip(rest, others.split([b.nbytes for b in rest]), strict=True):
            buffer.copy_(part.clone().view(buffer.dtype).view(buffer.shape))

    def keep(self) -> None:
        """Move to this rank's own."""
        self.then = {name: b.clone() for name, b in self._now().items()}

    def write(self) -> None:
        """Put them back into the model, where it still has them."""
        for name, buffer in self._now().items():
            if name in self.then and self.then[name].shape == buffer.shape:
                buffer.copy_(self.then[name])

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over values of equal shapes, by name."""
        for name, buffer in self.then.items():
            buffer.copy_(values[name])

    def _now(self) -> dict[str, Tensor]:
        """The model's own. Modules may have put new tensors in their places."""
        named = self._module.named_buffers()
        return {name: b.detach() for name, b in named if name not in self._ignored}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in tensors.items()}
