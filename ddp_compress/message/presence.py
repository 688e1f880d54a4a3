"""Which parameters have a gradient in a step: on this rank, and on any."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_

from torch import Tensor

from ddp_compress.ops import host


class Presence:
    """Which parameters have a gradient in a step.

    With each message ranks tell each other of its parameters, a bit each. So all of them know what
    none has a gradient for, and leave it as it is.

    Args:
        here: names of those that have one on this rank.

    Attributes:
        here: see above.
        anywhere: names of those that have one on any rank, as far as has been heard.

    Example:
        >>> presence = Presence(["bias"])
        >>> told = presence.told(["weight", "bias"])
        >>> presence.heard(["weight", "bias"], [told, Presence([]).told(["weight", "bias"])])
        >>> presence.anywhere
        {'bias'}
    """

    def __init__(self, here: Iterable[str]) -> None:
        self.here = frozenset(here)
        self.anywhere: set[str] = set()

    def told(self, names: Sequence[str]) -> Tensor:
        """What others are to know of some parameters, uint8; the first has the lowest bit."""
        bits = sum((name in self.here) << place for place, name in enumerate(names))
        return host.from_bytes(bits.to_bytes((len(names) + 7) // 8, "little"))

    def heard(self, names: Sequence[str], every: Iterable[Tensor]) -> None:
        """Take in what all ranks have `told` of these."""
        bits = reduce(or_, (int.from_bytes(host.to_bytes(each), "little") for each in every))
        self.anywhere |= {name for place, name in enumerate(names) if bits >> place & 1}
