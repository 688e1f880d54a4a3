"""Turn checkpoints of W ranks into those of another number of ranks."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ddp_compress.checkpoints.by_node import Saved, by_node, joined, sliced
from ddp_compress.checkpoints.checkpoint import (
    FORMAT,
    check_form,
    check_whole,
    checksum,
    part_of,
)
from ddp_compress.checks import check_count, named
from ddp_compress.message.shards import cuts
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host


def redistribute(
    checkpoints: Sequence[Saved], rank: int, world_size: int, ranks_per_node: int = 1
) -> dict[str, Any]:
    """The checkpoint for one of W' ranks, from those of all W ranks that trained before.

    What is still owed to the model, the mean over ranks of their residuals, stays the same:

        ``residual_i = W' / W * sum of residual_j over the old ranks j with j mod W' = i``

    * Momentum goes the same way: its mean is the momentum of the mean gradient.
    * An owner's second residual is summed over the old ranks and cut into W' ranges; it is part of
      a mean already, so it is not scaled.
    * Votes are dropped: the next ballot is sent whole.
    * Running averages of mean gradients are the same on all ranks, and stay.
    * Buckets are the same on all ranks, and stay.
    * Statistics say what one rank sent: those of the old rank ``rank mod W`` go on.

    With nodes of several ranks (``within``) all this holds of nodes, whose ranks have a slice each:
    slices are joined and cut anew, also from or for ranks without nodes. With as many nodes of as
    many ranks as before every rank gets its own checkpoint back, unchanged.

    The shards of an FSDP model stay what they are: give the checkpoints of all replicas of one.

    Args:
        checkpoints: what `CompressionState.state_dict` gave on each of the W old ranks, in rank
            order, on any device. To read large ones piece by piece, give ``mmap=True`` to
            ``torch.load``.
        rank: of the new ranks, 0 to W' - 1, which are numbered node by node.
        world_size: W'.
        ranks_per_node: the ranks that share a node from now on; 1 where ``within`` is None.

    Returns:
        A checkpoint for `CompressionState.load_state_dict` on that rank.

    Raises:
        TypeError: ``rank``, ``world_size`` or ``ranks_per_node`` is no int.
        ValueError: one lies outside its range, or the checkpoints are damaged, not of all ranks in
            their order, or of different steps, recipes, buckets or tensors.

    Example:
        >>> import ddp_compress as dc
        >>> state = dc.CompressionState(torch.nn.Linear(3, 1), dc.recipes.topk(density=0.3))
        >>> _ = state.reduce({"weight": torch.tensor([3.0, 1.0, 2.0])})
        >>> one_of_two = redistribute([state.state_dict()], rank=0, world_size=2)
        >>> one_of_two["tensors"]["residual"]["weight"]
        tensor([0., 2., 4.])
    """
    check_count("world_size", world_size, least=1)
    check_count("rank", rank, least=0)
    if rank >= world_size:
        raise ValueError(f"rank must be less than world_size {world_size}, got {rank}")
    check_count("ranks_per_node", ranks_per_node, least=1)
    if world_size % ranks_per_node:
        raise ValueError(
            f"world_size must be a multiple of ranks_per_node {ranks_per_node}, got {world_size}"
        )
    _check_form(checkpoints)
    nodes = by_node(checkpoints)
    _check_agree(nodes)
    (node, place), count = divmod(rank, ranks_per_node), world_size // ranks_per_node
    old = nodes[node % len(nodes)]
    own = dict(old[place % len(old)])
    if (len(nodes), len(old)) == (count, ranks_per_node):
        return own
    part, blocks = part_of(own), own.get("blocks", {})
    if part is not None and part[0] == "shard" and ranks_per_node > 1:
        raise ValueError(
            f"ranks_per_node must be 1 for the shards of an FSDP model, got {ranks_per_node}"
        )

    if "blocks" not in own and ranks_per_node > 1:
        raise ValueError(
            f"checkpoint has format {own['format']}, which does not tell where slices may be cut: "
            "load it without within= once, and save it anew"
        )

    def before(slot: str, name: str) -> Iterator[Tensor]:
        """What this rank is to have, as every old node had it."""
        for each in nodes:
            whole = joined([saved["tensors"][slot][name] for saved in each])
            yield sliced(whole, blocks.get(name, 1), place, ranks_per_node)

    tensors = {
        slot: {name: _RULES[slot](list(before(slot, name)), node, count) for name in by_name}
        for slot, by_name in own["tensors"].items()
    }
    if ranks_per_node > 1:
        part = ["slice", place, ranks_per_node]
    elif len(old) > 1:
        part = None
    return own | {
        "format": FORMAT,
        "saved_by": [node, count],
        "part": part,
        "blocks": blocks,
        "tensors": tensors,
        "checksum": checksum(tensors),
    }


def _check_form(checkpoints: Sequence[Saved]) -> None:
    if not checkpoints:
        raise ValueError("checkpoints must be those of all old ranks, got none")
    for number, saved in enumerate(checkpoints):
        with named(f"rank {number}"):
            check_form(saved)
        unknown = sorted(set(map(str, saved["tensors"])) - set(_RULES))
        if unknown:
            raise ValueError(f"rank {number}: checkpoint keeps unknown tensors {unknown}")


def _check_agree(nodes: Sequence[Sequence[Saved]]) -> None:
    """Facts are those of all ranks, shapes of those that have the same slice."""
    every = [saved for node in nodes for saved in node]
    _check_equal([_facts(saved) for saved in every])
    for same_slice in zip(*nodes, strict=True):
        _check_equal([_tensors(saved) for saved in same_slice])
    for number, saved in enumerate(every):
        with named(f"rank {number}"):
            check_whole(saved)


def _check_equal(facts: Sequence[Mapping[str, object]]) -> None:
    for what in dict.fromkeys(chain(*facts)):
        first, *others = (each.get(what) for each in facts)
        odd = {number: other for number, other in enumerate(others, 1) if other != first}
        if odd:
            theirs = ", ".join(f"rank {number} has {other}" for number, other in odd.items())
            raise ValueError(f"checkpoints must agree in {what}: rank 0 has {first}, {theirs}")


def _facts(saved: Saved) -> dict[str, object]:
    """What the checkpoints of all ranks share, by name."""
    names = ("recipe", "parameters", "dim_orders", "step", "density")
    buckets = f"#{zlib.crc32(repr(saved['buckets']).encode()):08x}"
    return {**{name: saved[name] for name in names}, "buckets": buckets}


def _tensors(saved: Saved) -> dict[str, object]:
    """What they keep, by name."""
    return {
        f"{slot} of {name}": f"{list(tensor.shape)} {tensor.dtype}"
        for slot, by_name in saved["tensors"].items()
        for name, tensor in by_name.items()
    }


# Each makes of a tensor [N] of all old ranks, in their order, the one of a new rank.


def _shared_out(parts: Sequence[Tensor], rank: int, world_size: int) -> Tensor:
    """The sum of some, so scaled that the mean over ranks stays."""
    total = _sum(parts[rank::world_size], like=parts[0])
    return (total * (world_size / len(parts))).to(parts[0].dtype)


def _cut_anew(parts: Sequence[Tensor], rank: int, world_size: int) -> Tensor:
    """The new rank's range of what was spread over its old owners; zero elsewhere."""
    total = _sum(parts, like=parts[0])
    size = host.tensor([len(total)], dtype=torch.int64)
    start, end = cuts(size, world_size)[0, rank : rank + 2].tolist()
    total[:start] = total[end:] = 0
    return total.to(parts[0].dtype)


def _dropped(parts: Sequence[Tensor], rank: int, world_size: int) -> Tensor:
    return torch.zeros_like(parts[0])


def _the_same(parts: Sequence[Tensor], rank: int, world_size: int) -> Tensor:
    return parts[0]


_RULES: Mapping[str, Callable[[Sequence[Tensor], int, int], Tensor]] = {
    "residual": _shared_out,
    "momentum": _shared_out,
    "owner_residual": _cut_anew,
    "vote": _dropped,
    "average": _the_same,
}


def _sum(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """In fp64, so that nothing is rounded twice."""
    total = host.zeros(*like.shape, dtype=torch.float64)
    for part in parts:
        total += to_host(part)
    return total
