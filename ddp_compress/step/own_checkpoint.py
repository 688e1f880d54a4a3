"""Which checkpoint is a rank's to go on from, of those that all ranks have saved."""

from collections.abc import Mapping, Sequence
from typing import Any

from ddp_compress.checkpoints.checkpoint import check_form, part_of
from ddp_compress.checkpoints.redistribute import redistribute
from ddp_compress.step.peers import Peers
from ddp_compress.transport.groups import rank_and_size
from ddp_compress.transport.nodes import ranks_per_node


def own_of_all(every: Sequence[Mapping[str, Any]], peers: Peers) -> Mapping[str, Any]:
    """This rank's own on as many ranks and nodes; else its share of all.

    Args:
        every: of all ranks of the job, in their order; looked at only as far as need be.
        peers: those of this rank, which may not have met.

    Raises:
        ValueError: they are not of all ranks, or contradict each other.
    """
    if not every:
        raise ValueError("checkpoints must be those of all ranks, got none")
    rank, size = rank_and_size()
    saved = every[rank % len(every)]
    check_form(saved)
    part, replicas = part_of(saved), rank_and_size(peers.group)
    if peers.shards is not None:
        ours = ["shard", *rank_and_size(peers.shards)]
        if len(every) == size and part == ours:
            return saved
        # The ranks of other shards have nothing of this one.
        same = sorted((each for each in every if part_of(each) == ours), key=_number)
        return redistribute(same, *replicas) if same else saved  # which is refused by name
    count = part[2] if part is not None else 1
    if len(every) == size and count == _count(peers, otherwise=count):
        return saved
    here = ranks_per_node(peers.within)
    return redistribute(every, *replicas, here)


def _count(peers: Peers, otherwise: int) -> int:
    """How many ranks share a node; something else where this rank cannot tell by itself.

    The first step compares who saved what with who goes on.
    """
    try:
        return ranks_per_node(peers.within)
    except ValueError:
        return otherwise


def _number(saved: Mapping[str, Any]) -> int:
    rank, _ = saved["saved_by"] or (0, 1)
    return int(rank)
