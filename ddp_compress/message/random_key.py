"""What random numbers of a step are drawn from."""

from dataclasses import dataclass

from torch import Tensor

from ddp_compress.ops.reference import salts


@dataclass(frozen=True)
class RandomKey:
    """What tells one drawing of random numbers from another.

    Numbers are hashes, so every device and every run draws the same ones; and of names, so they do
    not depend on the order in which parameters come.

    Args:
        names: of the groups that values come in, [G].
        step: of the state.
        rank: the sender, which alone draws `per_rank`.
        reply: whether they are an owner's answer, and not what it was sent.

    Example:
        >>> here, there = (RandomKey(("weight",), step=7, rank=rank) for rank in (0, 1))
        >>> here.common(seed=0).equal(there.common(seed=0))
        True
        >>> here.per_rank(seed=0).equal(there.per_rank(seed=0))
        False
    """

    names: tuple[str, ...]
    step: int
    rank: int
    reply: bool = False

    def common(self, seed: int) -> Tensor:
        """A salt for every group, [G] int64, the same on every rank."""
        return salts([f"{self._way}/{name}" for name in self.names], seed, self.step)

    def per_rank(self, seed: int) -> Tensor:
        """A salt for every group, [G] int64, of this rank alone."""
        return salts([f"{self._way}/{self.rank}/{name}" for name in self.names], seed, self.step)

    def single(self, seed: int) -> Tensor:
        """One salt for all groups, [1] int64, the same on every rank."""
        return salts([self._way], seed, self.step)

    @property
    def _way(self) -> str:
        return "reply" if self.reply else "send"
