"""A state that differs from rank to rank, for `torch.distributed.checkpoint`."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_map_only

from ddp_compress.ops.devices import to_host
from ddp_compress.transport.groups import rank_and_size


class Stateful(Protocol):
    """A `CompressionState`, `LocalUpdates`, a model, and so on."""

    def state_dict(self) -> Mapping[str, Any]:
        """What it carries from step to step."""

    def load_state_dict(self, state_dict: Any) -> object:
        """Take that back."""


class PerRank:
    """A state as `torch.distributed.checkpoint` must see it: every rank keeps its own.

    So it must see `LocalUpdates` and, between two rounds, the model's weights too.

    DCP takes tensors of one name for copies of each other and saves rank 0's. Here names carry the
    rank. Each is of one entry, a tuple with the whole checkpoint in it, which DCP neither takes
    apart nor needs to know the shapes of: a fresh state has none yet.

    Args:
        stateful: on every rank its own: a `CompressionState`, `LocalUpdates`, the bare model.

    Example:
        >>> import torch, ddp_compress as dc
        >>> import torch.distributed.checkpoint as dcp
        >>> state = dc.CompressionState(torch.nn.Linear(4, 2), dc.recipes.topk(density=0.5))
        >>> list(PerRank(state).state_dict())
        ['rank 0 of 1']
        >>> def save(model, state, folder):
        ...     dcp.save({"model": model, "compression": PerRank(state)}, checkpoint_id=folder)
        >>> def load(model, state, folder):
        ...     dcp.load({"model": model, "compression": PerRank(state)}, checkpoint_id=folder)
    """

    def __init__(self, stateful: Stateful) -> None:
        self._stateful = stateful

    def state_dict(self) -> dict[str, tuple[dict[str, Any]]]:
        """This rank's checkpoint under its own name, in the host's memory."""
        return {_name(): (tree_map_only(Tensor, to_host, dict(self._stateful.state_dict())),)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back this rank's own; see what it was made of.

        Raises:
            ValueError: there is none, or it does not fit. Nothing has changed then.
        """
        entry = state_dict.get(_name())
        if not isinstance(entry, tuple) or len(entry) != 1:
            raise ValueError(
                f"checkpoint holds {sorted(map(str, state_dict))}, expected a tuple of one entry "
                f"as {_name()!r}"
            )
        self._stateful.load_state_dict(entry[0])


def _name() -> str:
    """Unique in the job, even where states live in groups of some ranks."""
    rank, world_size = rank_and_size()
    return f"rank {rank} of {world_size}"
