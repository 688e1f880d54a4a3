"""What is saved of a training: anything that has a ``state_dict``."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_map_only

from ddp_compress.ops.devices import to_host
from ddp_compress.transport.groups import rank_and_size


class Stateful(Protocol):
    """A `CompressionState`, `LocalUpdates`, a model, an optimizer, a scheduler, and so on.

    Where it also has ``load_state_dicts(list)``, as a `CompressionState` has, that takes what all
    ranks gave, however many they were.
    """

    def state_dict(self) -> Mapping[str, Any]:
        """What it carries from step to step."""

    def load_state_dict(self, state_dict: Any) -> object:
        """Take that back."""


def on_host(stateful: Stateful) -> dict[str, Any]:
    """What a part carries from step to step, in the host's memory."""
    carried: dict[str, Any] = tree_map_only(Tensor, to_host, dict(stateful.state_dict()))
    return carried


def take_back(stateful: Stateful, every: Sequence[Any]) -> None:
    """Let a part of this rank go on from what all ranks carried, be they more or fewer now.

    Args:
        stateful: the part.
        every: what it gave on each of them, in rank order. It need not be read before it is looked
            at; on as many ranks most parts look at their own alone.
    """
    if hasattr(stateful, "load_state_dicts"):
        stateful.load_state_dicts(every)
    else:
        stateful.load_state_dict(every[rank_and_size()[0] % len(every)])


def rank_name(rank: int, world_size: int) -> str:
    """Unique in the job, even where states live in groups of some ranks.

    Example:
        >>> rank_name(0, 2)
        'rank 0 of 2'
    """
    return f"rank {rank} of {world_size}"
