"""A round: weight differences through a recipe, buffers averaged; all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_compress.anchor import Anchor
from ddp_compress.buffers import Buffers
from ddp_compress.exchange import Comm, meet_over_buffers
from ddp_compress.state import CompressionState

Outer = Callable[[list[Tensor]], Optimizer]


def plain_adding(anchor: list[Tensor]) -> Optimizer:
    """The outer optimizer of no outer optimizer: ``anchor += mean``, bit for bit."""
    return torch.optim.SGD(anchor, lr=1.0)


class Meeting:
    """Where ranks that have stepped apart come together again.

    With w a rank's weights and a the anchor, a round is::

        a = outer.step(a, gradient = -mean over ranks of recipe(w - a));  w = a

    Args:
        state: what the differences travel through; its ``step`` counts rounds.
        module: the bare model, whose buffers travel as well.
        parameters: its weights that ranks share, by name.
        outer: makes the optimizer of the anchor, from its tensors.
        averages: whether floating-point buffers are averaged; else every rank keeps its own.
        ignored: names of buffers that ranks do not share.

    Attributes:
        anchor: the weights that all ranks had after the last round.
        buffers: the buffers after it.
        outer: the optimizer of the anchor.

    Raises:
        TypeError: ``outer`` makes no optimizer.
    """

    def __init__(
        self,
        state: CompressionState,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        outer: Outer = plain_adding,
        averages: bool = True,
        ignored: Iterable[str] = (),
    ) -> None:
        self.anchor = Anchor(parameters)
        self.buffers = Buffers(module, ignored)
        self.outer = outer(list(self.anchor.weights.values()))
        if not isinstance(self.outer, Optimizer):
            raise TypeError(f"outer must give an Optimizer, got {type(self.outer).__name__}")
        self._state = state
        self._averages = averages
        self._comm: Comm | None = None

    @torch.no_grad()
    def restart(self) -> None:
        """Take the weights and buffers of now for those of the last round."""
        self.anchor.keep()
        self.buffers.keep()

    @torch.no_grad()
    def meet(self, setting: str) -> bool:
        """Hold a round. Nothing is written before all ranks have gone through all of it.

        Args:
            setting: what ranks must share besides.

        Returns:
            Whether all ranks' weights were finite; if not, all are back at the last round.

        Raises:
            PeerError: on every rank, where ranks differ or one failed. Nothing has changed then.
        """
        state, comm = self._state, self._bind(setting)
        number = state.step
        if self._averages and self.buffers.then:
            going = meet_over_buffers(comm, number, self.buffers)
        means = state.reduce(self.anchor.moved(), setting)
        finite = state.step > number
        if finite:
            self._advance(means)
            if not self._averages:
                self.buffers.keep()
            elif self.buffers.then:
                self.buffers.advance(*going)
        self.write()
        return finite

    @torch.no_grad()
    def write(self) -> None:
        """Bring the model to the last round."""
        self.anchor.write()
        self.buffers.write()

    def _advance(self, means: Mapping[str, Tensor]) -> None:
        """The outer step."""
        for name, weight in self.anchor.weights.items():
            weight.grad = means[name].neg_()
        self.outer.step()
        self.outer.zero_grad()

    def _bind(self, setting: str) -> Comm:
        """The other ranks; when first met, they agree on what they do."""
        stats = self._state.stats
        if self._comm is None:
            device = next(iter(self.anchor.weights.values())).device
            comm = Comm(self._state.process_group, stats, device, rotates=False)
            comm.agree(f"{setting}, {self._description()}", 1.0, self._state.step)
            self._comm = comm
        self._comm.stats = stats
        return self._comm

    def _description(self) -> str:
        kinds = {name: (tuple(b.shape), b.dtype) for name, b in self.buffers.then.items()}
        buffers = f"averaged from #{self.buffers.digest:08x}" if self._averages else "kept"
        outer = " ".join(repr(self.outer).split())
        return f"outer {outer}, anchor #{self.anchor.digest:08x}, buffers {buffers}: {kinds}"
