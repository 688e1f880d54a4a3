"""A state that differs from rank to rank, for savers that know rank 0 alone."""

from collections.abc import Mapping
from typing import Any

from ddp_compress.checkpoints.stateful import Stateful, on_host, plain, rank_name, take_back
from ddp_compress.transport.groups import rank_and_size
from ddp_compress.transport.together import gather, together


class AllRanks:
    """A state as a saver must see it that asks every rank and keeps what rank 0 says.

    Such as Fabric's ``save``, Lightning's checkpoints, Accelerate's ``register_for_checkpointing``
    or ``if rank == 0: torch.save(...)``. Rank 0 then has the states of all ranks in its host's
    memory for a while, and in one file. Where that is too much, see `checkpoints.save`.

    Args:
        stateful: on every rank its own: a `CompressionState`, `LocalUpdates`, the bare model.

    Example:
        >>> import torch, ddp_compress as dc
        >>> state = dc.CompressionState(torch.nn.Linear(4, 2), dc.recipes.topk(density=0.5))
        >>> saved = AllRanks(state).state_dict()
        >>> list(saved)
        ['rank 0 of 1']
        >>> AllRanks(state).load_state_dict(saved)
    """

    def __init__(self, stateful: Stateful) -> None:
        self._stateful = stateful

    def state_dict(self) -> dict[str, Any]:
        """On rank 0 every rank's, on others nothing. All ranks must call it.

        Raises:
            RuntimeError: on every rank, where one has failed.
        """
        kind = type(self._stateful).__name__
        own = together(lambda: plain(kind, on_host(self._stateful)))
        every = gather(own)
        return {rank_name(rank, len(every)): saved for rank, saved in enumerate(every)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back this rank's own, whatever number of ranks saved; every rank is given all.

        Raises:
            ValueError: it does not hold the states of all ranks, or they do not fit. Nothing has
                changed then.
        """
        size = len(state_dict)
        names = [rank_name(rank, size) for rank in range(size)]
        if not size or set(map(str, state_dict)) != set(names):
            rank, _ = rank_and_size()
            raise ValueError(
                f"rank {rank} was given {sorted(map(str, state_dict))}, expected the states of all "
                "ranks as AllRanks(state).state_dict() gives them on rank 0: call it on all ranks, "
                "and give every rank what rank 0 has saved"
            )
        take_back(self._stateful, [state_dict[name] for name in names])
