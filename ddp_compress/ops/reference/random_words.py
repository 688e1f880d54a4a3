"""Twin of csrc/tie_hash.h: random numbers that are hashes of a place, alike on every machine."""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Tensor

from ddp_compress.ops import host


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
    words = [int.from_bytes(d, "little", signed=True) for d in digests]
    return host.tensor(words, dtype=torch.int64)


def random_words(offsets: Tensor, salts: Tensor) -> Tensor:
    """64 random bits for every offset: splitmix64's finalizer of ``salt + C1 * offset``.

    Args:
        offsets: [K], int64.
        salts: [K] or [1], int64.

    Returns:
        [K], int64.

    Example:
        >>> random_words(torch.arange(2), torch.tensor([5]))
        tensor([-5278393320434088484,  7134611160154358618])
    """
    return _mixed(salts + offsets * _BY_OFFSET)


def block_salts(salts: Tensor, counts: Tensor) -> Tensor:
    """A salt for every block of P parameters, of which each has so many.

    Args:
        salts: [P], int64.
        counts: [P], int64, adding up to B.

    Returns:
        [B], int64.

    Example:
        >>> block_salts(torch.tensor([5, 6]), torch.tensor([1, 2]))
        tensor([                   5,                    6, -3335678366873096951])
    """
    firsts = counts.cumsum(0) - counts
    number = host.arange(int(counts.sum())) - firsts.repeat_interleave(counts)
    return salts.repeat_interleave(counts) + number * _BY_DRAW


def salts(names: Sequence[str], seed: int, step: int) -> Tensor:
    """The salts [P], int64, of P parameters at a step: a hash of name, seed and step.

    Example:
        >>> salts(["weight", "bias"], seed=0, step=7)
        tensor([ 8839963487921152740, -5312563469278568483])
    """
    number = host.tensor(step, dtype=torch.int64)
    return _mixed(_name_salts(tuple(names), seed) + number * _BY_OFFSET)


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
    later = draw * host.tensor(_BY_DRAW, dtype=torch.int64)
    z = salts[owners] + (places - bounds[owners]) * _BY_OFFSET + later
    return _shifted(_mixed(z), 32)
