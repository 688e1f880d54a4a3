"""A round: weight differences through a recipe, buffers averaged; all of it or nothing."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial, reduce
from operator import or_

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_compress.local.anchor import Anchor
from ddp_compress.local.buffer_exchange import average_buffers
from ddp_compress.local.buffers import Buffers
from ddp_compress.local.roll_call import Answer, call_roll
from ddp_compress.stages import in_hook
from ddp_compress.step.sharded_model import reshard
from ddp_compress.step.state import CompressionState
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.two_levels import meet_and_own

Outer = Callable[[list[Tensor]], Optimizer]


def add_mean(anchor: list[Tensor]) -> Optimizer:
    """The outer optimizer of no outer optimizer: ``anchor += mean``, bit for bit."""
    return torch.optim.SGD(anchor, lr=1.0)


class Round:
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
        stages: where its time is counted, the state's.

    Raises:
        TypeError: ``outer`` makes no optimizer.
    """

    def __init__(
        self,
        state: CompressionState,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        outer: Outer = add_mean,
        averages: bool = True,
        ignored: Iterable[str] = (),
    ) -> None:
        self.anchor = Anchor(parameters)
        self.buffers = Buffers(module, ignored)
        self.outer = outer(list(self.anchor.weights.values()))
        if not isinstance(self.outer, Optimizer):
            raise TypeError(f"outer must give an Optimizer, got {type(self.outer).__name__}")
        self.stages = state.stages
        self._state = state
        self._averages = averages
        self._module = module
        self._comm: Comm | None = None
        self._inside: Comm | None = None  # the ranks that hold a sharded model with this one
        self._agreed = False

    @torch.no_grad()
    def restart(self) -> None:
        """Take the weights and buffers of now for those of the last round."""
        self.anchor.keep()
        self.buffers.keep()

    @torch.no_grad()
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @in_hook
    def meet(self, answer: Callable[[], Answer], setting: str = "") -> bool | None:
        """Hold a round, if any rank has moved. Nothing is written before all have gone through it.

        Args:
            answer: why this rank has come, its buffers left out. If it raises, every rank raises.
            setting: what ranks must share besides.

        Returns:
            Whether all ranks' weights were finite; if not, all are back at the last round. None
            where no rank had taken a step, and nothing was done.

        Raises:
            PeerError: on every rank, where ranks differ or one failed. Nothing has changed then.
        """
        state, comm, number = self._state, self._connect(), self._state.step
        moved: dict[str, Tensor] = {}

        def ready() -> Answer:  # all that may fail on this rank alone, for the others to hear of
            moved.update(self.anchor.delta())
            return replace(answer(), changed=self._changed())

        answers, any_moved = self._call_roll(comm, number, ready)
        if not any_moved:
            return None
        names = self._names([each.changed for each in answers])
        try:
            self._agree(comm, setting)
            if names:
                going = average_buffers(comm, number, self.buffers, names)
        except Exception as error:
            if self._inside is None:
                raise
            state.fail(error)  # other replicas' ranks have met it, those of this one have not
        means = state.reduce(moved, setting)
        finite = state.step > number
        if finite:
            try:
                self._advance(means)
                if not self._averages:
                    self.buffers.keep()
                elif names:
                    self.buffers.advance(*going, names)
            except BaseException:  # on this rank alone: the next meeting tells the others
                state.discard()
                raise
        state.settle()  # what was averaged has moved the anchor: there is no way back
        self.write()
        return finite

    @torch.no_grad()
    def write(self) -> None:
        """Bring the model to the last round."""
        reshard(self._module)  # or forward would go on with what it has gathered
        self.anchor.write()
        self.buffers.write()

    def _advance(self, means: Mapping[str, Tensor]) -> None:
        """The outer step."""
        for name, weight in self.anchor.weights.items():
            weight.grad = means[name].neg_()
        self.outer.step()
        self.outer.zero_grad()

    def _changed(self) -> int:
        """This rank's buffers that must travel, a bit each."""
        changed = set(self.buffers.changed()) if self._averages else ()
        return sum((name in changed) << bit for bit, name in enumerate(self.buffers.last_synced))

    def _names(self, changed: Iterable[int]) -> list[str]:
        """The buffers that have changed on any rank."""
        bits = reduce(or_, changed)
        return [name for bit, name in enumerate(self.buffers.last_synced) if bits >> bit & 1]

    def _call_roll(
        self, comm: Comm, number: int, answer: Callable[[], Answer]
    ) -> tuple[list[Answer], bool]:
        """Learn why every rank meets, and whether any has taken a step since the last round."""
        if self._inside is None:
            answers = call_roll(comm, number, answer)
            return answers, any(each.passes for each in answers)
        answers, failure = [], None
        try:
            answers = call_roll(comm, number, answer)
        except Exception as error:
            failure = error

        def of_all() -> Answer:
            if failure is not None:
                raise failure
            return Answer(answers[0].period, max(each.passes for each in answers))

        try:
            of_replica = call_roll(self._inside, number, of_all)
        except Exception as error:
            raise failure or error from None
        return answers, any(each.passes for each in of_replica)

    def _connect(self) -> Comm:
        """The other ranks."""
        state = self._state
        if self._comm is None:
            device = next(iter(self.anchor.weights.values())).device
            comm, words = Comm(state.process_group, state.stats, device), "local updates"
            meet = partial(comm.agree, lambda: words, 1.0, state.step)
            if state.shard_group is None:
                comm.own(meet())
            else:
                inside = Comm(state.shard_group, state.stats.within, device)
                meet_and_own(comm, inside, meet, words, 1.0, state.step)
                state.ends_with(inside.close)
                self._inside = inside
            state.ends_with(comm.close)
            self._comm = comm
        self._comm.traffic = state.stats
        if self._inside is not None:
            self._inside.traffic = state.stats.within
        return self._comm

    def _agree(self, comm: Comm, setting: str) -> None:
        """Before their first round, ranks compare what they do, in words."""
        if not self._agreed:
            comm.compare(lambda: f"{setting}, {self._description()}")
            self._agreed = True

    def _description(self) -> str:
        kinds = {name: (tuple(b.shape), b.dtype) for name, b in self.buffers.last_synced.items()}
        buffers = f"averaged from #{self.buffers.digest:08x}" if self._averages else "kept"
        outer = " ".join(repr(self.outer).split())
        return f"outer {outer}, anchor #{self.anchor.digest:08x}, buffers {buffers}: {kinds}"
