"""Which ranks share a node: every rank says which do, and all of them check it."""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ddp_compress.transport.groups import members

Within = Literal["node", "lost"] | dist.ProcessGroup | DeviceMesh
"""The ranks of a node: found, or a group of them, or a mesh of one dimension.

"lost" is what becomes of the last two in a copy, which cannot have them.
"""

CURE = (
    'start as many ranks on every host, as in torchrun --nproc_per_node=8, for within="node"; or '
    'give the group of each node\'s ranks, as in within=mesh["gpu"] for '
    'init_device_mesh("cuda", (nodes, 8), mesh_dim_names=("node", "gpu"))'
)


def check_within(within: object) -> None:
    """Raise unless this says which ranks share a node, or is None.

    Raises:
        TypeError, ValueError: see above.

    Example:
        >>> check_within("host")
        Traceback (most recent call last):
        ...
        ValueError: within must be "node", a process group, a mesh of one dimension or None, ...
    """
    expected = 'within must be "node", a process group, a mesh of one dimension or None, got'
    if isinstance(within, str) and within != "node":
        raise ValueError(f"{expected} {within!r}")
    if isinstance(within, DeviceMesh) and within.ndim != 1:
        names = within.mesh_dim_names or ("gpu",)
        raise ValueError(
            f"{expected} one of {within.ndim} dimensions: choose that of the ranks of a node, as "
            f"in within=mesh[{names[-1]!r}]"
        )
    if within in (None, dist.GroupMember.NON_GROUP_MEMBER):  # of others: all ranks are told
        return
    if not isinstance(within, str | dist.ProcessGroup | DeviceMesh):
        raise TypeError(f"{expected} {type(within).__name__}")


@dataclass(frozen=True)
class Claim:
    """What a rank says of its node.

    Args:
        ranks: who is in it, as the whole job numbers them, ascending; None where the host's name
            is to tell.
        host: the name of its host.
    """

    ranks: list[int] | None
    host: str

    def text(self) -> str:
        """To be told to the others."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Claim:
        """Undo `text`.

        Example:
            >>> Claim.of(Claim([0, 1], "a").text())
            Claim(ranks=[0, 1], host='a')
        """
        return cls(**json.loads(text))


def claim(within: Within) -> Claim:
    """What this rank says of its node.

    Raises:
        ValueError: it is in no group of its own.
    """
    host = socket.gethostname()
    if within == "lost":
        raise ValueError(
            "this state is a copy of one with within=, and process groups cannot be copied: make "
            "a new one with it, and load_state_dict this one's state_dict()"
        )
    if within == "node":
        return Claim(_torchrun_neighbours(), host)
    group = within.get_group() if isinstance(within, DeviceMesh) else within
    if not isinstance(group, dist.ProcessGroup):  # torch's mark for a group of others
        raise ValueError(
            "within is a group that this rank is not in: make one for every node, as "
            "dist.new_subgroups(8)[0] does, and give each rank its own"
        )
    return Claim(sorted(members(group)), host)


def ranks_per_node(within: Within | None) -> int:
    """How many ranks share a node, as far as one of them can tell.

    Raises:
        ValueError: it is in no group of its own, or only the names of all hosts could tell.

    Example:
        >>> ranks_per_node(None)
        1
    """
    if within is None:
        return 1
    ranks = claim(within).ranks
    if ranks is None:
        raise ValueError(
            'within="node" does not tell how many ranks a node has where torchrun has not started '
            'them: give the group of each node\'s ranks, as in within=mesh["gpu"]'
        )
    return len(ranks)


def lasting(within: Within | None) -> Within | None:
    """What a copy, or a pickle, has of it.

    Example:
        >>> lasting("node")
        'node'
    """
    return within if within is None or isinstance(within, str) else "lost"


def _torchrun_neighbours() -> list[int] | None:
    """The ranks that torchrun has started beside this one; None where it was not torchrun."""
    try:
        rank, local, count = (
            int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
    except (KeyError, ValueError):
        return None
    if rank != dist.get_rank() or not 0 <= local < count:  # left over from another launcher
        return None
    return list(range(rank - local, rank - local + count))


def nodes_of(claims: Sequence[Claim], ranks: Sequence[int], found: bool) -> list[list[int]]:
    """The ranks of every node, once all have said which are in theirs.

    Args:
        claims: of all ranks, in their order.
        ranks: their numbers in the whole job.
        found: whether nodes are those of hosts, not groups that were given.

    Raises:
        ValueError: alike on every rank: ranks contradict each other, are on several hosts, or
            nodes are not equally large.

    Example:
        >>> nodes_of([Claim([0, 1], "a"), Claim([0, 1], "a"), Claim([2, 3], "b"),
        ...     Claim([2, 3], "b")], range(4), found=True)
        [[0, 1], [2, 3]]
    """
    by_host: dict[str, list[int]] = {}
    for rank, each in zip(ranks, claims, strict=True):
        by_host.setdefault(each.host, []).append(rank)
    named = {
        rank: tuple(each.ranks if each.ranks is not None else by_host[each.host])
        for rank, each in zip(ranks, claims, strict=True)
    }
    for rank, theirs in named.items():
        if rank not in theirs:
            raise ValueError(
                f"rank {rank} says that its node is of ranks {list(theirs)}, without itself: {CURE}"
            )
        for other in theirs:
            if named.get(other) != theirs:
                says = f"says {list(named[other])}" if other in named else "is not among these"
                raise ValueError(
                    f"rank {rank} says that its node is of ranks {list(theirs)}, but rank {other} "
                    f"{says}: {CURE}"
                )
    nodes = [list(node) for node in dict.fromkeys(named.values())]
    if len({len(node) for node in nodes}) > 1:
        raise ValueError(f"nodes must be equally large, but are of ranks {nodes}: {CURE}")
    if found:
        _check_hosts(nodes, dict(zip(ranks, (each.host for each in claims), strict=True)))
    return nodes


def _check_hosts(nodes: Sequence[Sequence[int]], hosts: dict[int, str]) -> None:
    """A node is on one host; where several are on the same, one may be meant to be."""
    for node in nodes:
        here = sorted({hosts[rank] for rank in node})
        if len(here) > 1:
            raise ValueError(
                f"ranks {list(node)} were started as one node, but are on hosts {', '.join(here)}: "
                f"{CURE}"
            )
    names = [hosts[node[0]] for node in nodes]
    shared = sorted({name for name in names if names.count(name) > 1})
    if shared:
        warnings.warn(
            f"several nodes are on host {', '.join(shared)}, as torchrun has started them: ranks "
            "of one host exchange as over a network",
            stacklevel=2,
        )
