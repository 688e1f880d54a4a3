"""The anchor: the weights that all ranks had after the last round."""

from collections.abc import Iterable, Mapping
from functools import reduce

import torch
from torch import Tensor

from ddp_compress.message.chunk import memory_dtype
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host
from ddp_compress.step.sharded_model import local_of


class Anchor:
    """The point from which every rank takes its local steps.

    Kept in fp32 (fp64 if any weight is), so that small averages do not drown in the rounding of
    half types. The model's own weights after a round are the anchor's, rounded.

    Args:
        parameters: the weights that ranks share, by name.

    Attributes:
        weights: as after the last round, by name.

    Example:
        >>> weight = torch.zeros(2)
        >>> anchor = Anchor({"weight": weight})
        >>> _ = weight.add_(0.5)
        >>> anchor.delta()
        {'weight': tensor([0.5000, 0.5000])}
        >>> anchor.write()
        >>> weight
        tensor([0., 0.])
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        dtype = widest(memory_dtype(p.dtype) for p in parameters.values())
        self.weights = {name: p.to(dtype, copy=True) for name, p in self._now().items()}

    @property
    def digest(self) -> int:
        """A number that ranks with equal anchors share."""
        flat = torch.cat([weight.flatten() for weight in self.weights.values()])
        return host.crc32(to_host(flat))

    def delta(self) -> dict[str, Tensor]:
        """Weights now - weights after the last round."""
        return {
            name: p.to(then.dtype) - then.to(p.dtype).to(then.dtype)
            for (name, p), then in zip(self._now().items(), self.weights.values(), strict=True)
        }

    def keep(self) -> None:
        """Move to the weights as they are now."""
        self.load(self._now())

    def write(self) -> None:
        """Put them back into the model."""
        for name, parameter in self._now().items():
            parameter.copy_(self.weights[name])

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over values of equal shapes, by name."""
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def _now(self) -> dict[str, Tensor]:
        """The model's own; of a model that is sharded, this rank's shards."""
        return {name: local_of(p).detach() for name, p in self._parameters.items()}


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """A dtype that holds all of these, fp32 at least.

    Example:
        >>> widest([torch.bfloat16, torch.float64])
        torch.float64
    """
    return reduce(torch.promote_types, dtypes, torch.float32)
