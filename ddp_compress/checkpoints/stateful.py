"""What is saved of a training: anything that has a ``state_dict``."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Protocol

import torch
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


def plain(name: str, carried: dict[str, Any]) -> dict[str, Any]:
    """What a part carries, if it can be taken back from a file that cannot make us run code.

    Raises:
        ValueError: it holds more than tensors and plain values. Found when it is saved, not when
            nothing is left but the file.

    Example:
        >>> plain("optimizer", {"lr": 0.1})
        {'lr': 0.1}
    """
    file = BytesIO()
    try:
        torch.save(tree_map_only(Tensor, lambda _: None, carried), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:  # of pickle, or of whatever the part holds
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ValueError(
            f"{name} holds what a file gives back only by running its code, expected tensors and "
            f"plain values. Turn them into such, as by float(...), or save it apart: {reason}"
        ) from error
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
