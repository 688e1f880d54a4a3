"""Send the largest entries of one sign, that with the larger mean."""

from dataclasses import dataclass
from typing import ClassVar

from ddp_compress.select.top_k import TopK


@dataclass(frozen=True)
class HeavierSide(TopK):
    """The largest positive or the most negative entries, whichever have the larger mean.

    Up to ``max(1, round(density * N))`` positive entries compete with as many negative ones. The
    other side is not sent and stays in the residual. Equal means choose the negative side.

    Args:
        density: share of the elements, in (0, 1], or a schedule of it.
        scope: what one selection runs over, see `TopK`.
        seed: break ties by a hash, see `TopK`.

    Source: Sattler et al., Sparse Binary Compression (2018), Alg. 2.

    Example:
        >>> HeavierSide(0.001)
        HeavierSide(density=0.001, scope='tensor', seed=None)
    """

    heavier: ClassVar[bool] = True
