"""Turn checkpoints of W ranks into those of another number of ranks."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ddp_compress.checkpoints.checkpoint import FORMAT, check_form, check_whole, checksum
from ddp_compress.checks import check_count, named
from ddp_compress.message.shards import cuts
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host


def redistribute(
    checkpoints: Sequence[Mapping[str, Any]], rank: int, world_size: int
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

    With ``world_size = W`` every rank gets its own checkpoint back, unchanged.

    Args:
        checkpoints: what `CompressionState.state_dict` gave on each of the W old ranks, in rank
            order, on any device. To read large ones piece by piece, give ``mmap=True`` to
            ``torch.load``.
        rank: of the new ranks, 0 to W' - 1.
        world_size: W'.

    Returns:
        A checkpoint for `CompressionState.load_state_dict` on that rank.

    Raises:
        TypeError: ``rank`` or ``world_size`` is no int.
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
    _check(checkpoints)
    own = dict(checkpoints[rank % len(checkpoints)])
    if world_size == len(checkpoints):
        return own
    tensors: dict[str, dict[str, Tensor]] = {}
    for slot, by_name in own["tensors"].items():
        rule = _RULES[slot]
        parts = {name: [saved["tensors"][slot][name] for saved in checkpoints] for name in by_name}
        tensors[slot] = {name: rule(parts[name], rank, world_size) for name in by_name}
    return own | {
        "format": FORMAT,
        "saved_by": [rank, world_size],
        "tensors": tensors,
        "checksum": checksum(tensors),
    }


def _check(checkpoints: Sequence[Mapping[str, Any]]) -> None:
    if not checkpoints:
        raise ValueError("checkpoints must be those of all old ranks, got none")
    for number, saved in enumerate(checkpoints):
        with named(f"rank {number}"):
            check_form(saved)
        here = [number, len(checkpoints)]
        if saved["saved_by"] not in (None, here):
            rank, world_size = saved["saved_by"]
            raise ValueError(
                f"checkpoints must be those of all old ranks in their order, but number {number} "
                f"of {len(checkpoints)} was saved by rank {rank} of {world_size}"
            )
        unknown = sorted(set(map(str, saved["tensors"])) - set(_RULES))
        if unknown:
            raise ValueError(f"rank {number}: checkpoint keeps unknown tensors {unknown}")
    facts = [_facts(saved) for saved in checkpoints]
    for what in dict.fromkeys(chain(*facts)):
        first, *others = (each.get(what) for each in facts)
        odd = {number: other for number, other in enumerate(others, 1) if other != first}
        if odd:
            theirs = ", ".join(f"rank {number} has {other}" for number, other in odd.items())
            raise ValueError(f"checkpoints must agree in {what}: rank 0 has {first}, {theirs}")
    for number, saved in enumerate(checkpoints):
        with named(f"rank {number}"):
            check_whole(saved)


def _facts(saved: Mapping[str, Any]) -> dict[str, object]:
    """What the checkpoints of all ranks share, by name."""
    tensors = {
        f"{slot} of {name}": f"{list(tensor.shape)} {tensor.dtype}"
        for slot, by_name in saved["tensors"].items()
        for name, tensor in by_name.items()
    }
    shared = {
        name: saved[name] for name in ("recipe", "parameters", "dim_orders", "step", "density")
    }
    return {**shared, "buckets": f"#{zlib.crc32(repr(saved['buckets']).encode()):08x}", **tensors}


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
