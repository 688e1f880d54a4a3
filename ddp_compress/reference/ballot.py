"""Twin of csrc/cpu/ballot.cpp, and the hash that breaks ties."""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return word - 2**64 if word >= 2**63 else word


_BY_OFFSET = _signed(0x9E3779B97F4A7C15)
_BY_DRAW = _signed(0xD1B54A32D192ED03)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A logical shift to the right, which int64 lacks."""
    return (z >> by) & (2 ** (64 - by) - 1)


def _mixed(z: Tensor) -> Tensor:
    """The finalizer of splitmix64: every bit of the result depends on every bit of z."""
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


@lru_cache(maxsize=64)
def _name_salts(names: tuple[str, ...], seed: int) -> Tensor:
    digests = [blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in names]
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests]).long()


def salts(names: Sequence[str], seed: int, step: int) -> Tensor:
    """The salts [P], int64, of P parameters at a step: a hash of name, seed and step.

    Example:
        >>> salts(["weight", "bias"], seed=0, step=7)
        tensor([ 8839963487921152740, -5312563469278568483])
    """
    return _mixed(_name_salts(tuple(names), seed) + torch.tensor(step) * _BY_OFFSET)


def shift_salts(salts: Tensor, offsets: Tensor) -> Tensor:
    """The salts [P] with which slices of P parameters hash like the parameters themselves.

    Args:
        salts: [P], int64, of the whole parameters.
        offsets: [P], int64, where in its parameter every slice starts.

    Example:
        >>> whole, slice_ = torch.tensor([5]), shift_salts(torch.tensor([5]), torch.tensor([3]))
        >>> hashes(torch.tensor([4]), torch.tensor([0, 9]), whole)
        tensor([426659522])
        >>> hashes(torch.tensor([1]), torch.tensor([0, 6]), slice_)
        tensor([426659522])
    """
    return salts + offsets * _BY_OFFSET


def hashes(positions: Tensor, bounds: Tensor, salts: Tensor, draw: int = 0) -> Tensor:
    """A hash of the place of every position: uniform in [0, 2**32), alike on every machine.

    It is the upper half of splitmix64's finalizer of ``salt + C1 * offset + C2 * draw``, modulo
    2**64, where `offset` counts from the parameter's first element. So it depends neither on how
    parameters are laid out nor, with `shift_salts`, on how they are cut.

    Args:
        positions: [K], within ``[0, bounds[-1])``.
        bounds: [P + 1], int64, offsets of the P parameters.
        salts: [P], int64, see `salts`.
        draw: tells several hashes of one place apart.

    Returns:
        [K], int64.

    Source: Steele, Lea & Flood, Fast Splittable Pseudorandom Number Generators (2014).
    """
    places = positions.long()
    owners = torch.searchsorted(bounds, places, right=True) - 1
    z = salts[owners] + (places - bounds[owners]) * _BY_OFFSET + draw * torch.tensor(_BY_DRAW)
    return _shifted(_mixed(z), 32)


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
