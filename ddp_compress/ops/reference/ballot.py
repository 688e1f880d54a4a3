"""Twin of csrc/cpu/ballot.cpp."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.ops.reference.random_words import hashes


def tally(ballots: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Count the votes of B ballots.

    Args:
        ballots: B tensors [K_b], int32, strictly ascending positions; at least one.

    Returns:
        The U positions that any ballot holds, int32, ascending, and how many hold each, [U] int32.

    Raises:
        RuntimeError: there is no ballot, or one does not ascend strictly from 0 or more.

    Example:
        >>> tally([torch.tensor([1, 5]).int(), torch.tensor([5, 9]).int()])
        (tensor([1, 5, 9], dtype=torch.int32), tensor([1, 2, 1], dtype=torch.int32))
    """
    if not ballots:
        raise RuntimeError("ballots must hold at least one tensor")
    for i, ballot in enumerate(ballots):
        if (ballot[1:] <= ballot[:-1]).any() or (ballot[:1] < 0).any():
            raise RuntimeError(f"ballots[{i}] must ascend strictly from 0 or more")
    positions, votes = torch.cat(list(ballots)).unique(return_counts=True)
    return positions, votes.int()


def vote_keys(
    positions: Tensor, votes: Tensor, bounds: Tensor, salts: Tensor, voters: int, random: bool
) -> Tensor:
    """Keys whose K largest are the election's winners.

    Not ``random``: the most voted win, the larger hash of equals (see `hashes`). ``random``: U
    positions are drawn one after another without replacement, each with a probability proportional
    to its votes. For that a position of v votes has the largest of v uniform numbers as its key,
    which is distributed like ``u ** (1 / v)`` of one: Efraimidis and Spirakis show that the K
    largest of these are such a draw. Integers alone, so every rank finds the same winners.

    Args:
        positions: [U], int32, strictly ascending within ``[0, bounds[-1])``.
        votes: [U], int32, in 1 … voters.
        bounds: [P + 1], int64, offsets of the P parameters, ascending from 0.
        salts: [P], int64, see `salts`.
        voters: how many voted, below 2**31.
        random: whether winners are drawn.

    Returns:
        [U], int64, in ``[0, voters * 2**32)``.

    Raises:
        RuntimeError: shapes or dtypes do not fit, or a number lies outside its range.

    Source: Ozfatura et al., Distributed Sparse SGD with Majority Voting (2020), Alg. 1;
    Efraimidis & Spirakis, Weighted random sampling with a reservoir (2006).

    Example:
        >>> positions, votes = torch.tensor([1, 5, 9]).int(), torch.tensor([1, 2, 1]).int()
        >>> keys = vote_keys(positions, votes, torch.tensor([0, 10]), torch.tensor([3]), 2, False)
        >>> keys >> 32
        tensor([0, 1, 0])
    """
    if ((votes < 1) | (votes > voters)).any():
        raise RuntimeError(f"votes must lie within 1 to voters = {voters}")
    keys = hashes(positions, bounds, salts)
    if not random:
        return (votes.long() - 1 << 32) | keys
    for draw in range(1, int(votes.max()) if len(votes) else 0):
        keys = torch.where(votes > draw, keys.maximum(hashes(positions, bounds, salts, draw)), keys)
    return voters * keys


def largest(keys: Tensor, k: int) -> Tensor:
    """Where the k largest keys are; of equals the first.

    Args:
        keys: [U], int64.
        k: how many to take, 0 or more.

    Returns:
        [min(k, U)], int64, ascending indices into ``keys``.

    Raises:
        RuntimeError: k is negative.

    Example:
        >>> largest(torch.tensor([4, 7, 4, 9]), 3)
        tensor([0, 1, 3])
    """
    if k < 0:
        raise RuntimeError(f"k must be 0 or more, got {k}")
    return keys.argsort(descending=True, stable=True)[:k].sort().values
