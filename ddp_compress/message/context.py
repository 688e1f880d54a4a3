"""What both sides know of values before these travel."""

from dataclasses import dataclass

from torch import Tensor

from ddp_compress.message.random_key import RandomKey

NO_KEY = RandomKey((), step=0, rank=0)  # for what draws nothing


@dataclass(frozen=True)
class Context:
    """What sender and receivers know of values [K] beforehand.

    Args:
        counts: how many of them are in every group, [G] int64, on the host. They come group after
            group.
        key: what random numbers are drawn from. All but `RandomKey.per_rank` is the same on both
            sides.
        guess: what the values may be, [K]; None where nobody has an idea.

    Example:
        >>> import torch
        >>> Context(torch.tensor([2, 1])).guess is None
        True
    """

    counts: Tensor
    key: RandomKey = NO_KEY
    guess: Tensor | None = None
