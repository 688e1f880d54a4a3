"""A state that differs from rank to rank, for `torch.distributed.checkpoint`."""

from collections.abc import Mapping
from typing import Any

from ddp_compress.checkpoints.stateful import Stateful, on_host, rank_name
from ddp_compress.transport.groups import rank_and_size


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
        return {rank_name(*rank_and_size()): (on_host(self._stateful),)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back this rank's own; see what it was made of.

        Raises:
            ValueError: there is none, or it does not fit. Nothing has changed then.
        """
        here = rank_name(*rank_and_size())
        entry = state_dict.get(here)
        if not isinstance(entry, tuple) or len(entry) != 1:
            raise ValueError(
                f"checkpoint holds {sorted(map(str, state_dict))}, expected a tuple of one entry "
                f"as {here!r}. (PerRank is for torch.distributed.checkpoint. What saves rank 0's "
                "state alone, as Accelerate's register_for_checkpointing, wants AllRanks(state).)"
            )
        self._stateful.load_state_dict(entry[0])
