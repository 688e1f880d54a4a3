"""Watch whether gradients that were sent are applied, as error feedback assumes.

Between two passes of a model the gradients that the first has sent may be

* applied, by an optimizer's step: nothing is amiss;
* cleared, unused: what was sent has left memory and is lost, what was not sent will be applied;
* summed with the next ones, where passes accumulate without ``no_sync``: what was sent is in the
  gradients again, and would enter a momentum twice.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from ddp_compress.step.guards import refuse_second_momentum
from ddp_compress.step.optimizers import parameters_of
from ddp_compress.step.sharded_model import local_of

# How passes send nothing: all of a step but the last, and one whose gradients are not applied.
DDP = (
    "in `with ddp_model.no_sync():`",
    "call ddp_model.module, or ddp_model in `with ddp_model.no_sync():`",
)
SHARDED = (
    "after model.set_requires_gradient_sync(False)",
    "call model.set_requires_gradient_sync(False) before the pass",
)


class Applied:
    """What became of the gradients that a model's latest pass has sent.

    Args:
        parameters: the model's, by name.
        momentum_of: the recipe whose memory keeps one, so that gradients must not be summed with
            others, and no optimizer of theirs may have another; None where none is kept.

    Attributes:
        by: the name of the optimizer that was the last to apply any of them; None for none.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> applied = Applied({"weight": weight}, momentum_of=None)
        >>> applied.sent(["weight"], settle=lambda: None)
        >>> weight.grad = torch.ones(2)
        >>> torch.optim.SGD([weight], lr=0.1).step()
        >>> applied.by
        'SGD'
    """

    def __init__(self, parameters: Mapping[str, Tensor], momentum_of: str | None) -> None:
        self.by: str | None = None
        self._settle: Callable[[], None] = _do_nothing
        self._parameters = parameters
        sharded = any(local_of(p) is not p for p in parameters.values())
        self._unsent, self._send_none = SHARDED if sharded else DDP
        self._ids = {id(p) for p in parameters.values()}
        self._momentum_of = momentum_of
        self._with_gradients: dict[int, set[int]] = {}  # that optimizers in a step began with
        self._stepping: set[int] = set()  # by an optimizer that has not come back from a closure
        self._stepped: set[int] = set()  # by any optimizer, ever
        self._owed: set[int] = set()  # sent, and not stepped since
        self._in_step: set[int] = set()  # of those, sent within a step, whose closure may clear
        self._accumulations = _Accumulations(self._parameters)
        self._warned = False
        self._checks: list[Callable[[Optimizer, bool], None]] = []
        _watch_optimizers()
        _watches.add(self)

    def sent(self, names: Iterable[str], settle: Callable[[], None]) -> None:
        """A pass has sent gradients of these parameters; what to do when all are applied."""
        self.by, self._settle = None, settle
        self._owed = {id(self._parameters[name]) for name in names}
        self._in_step = self._owed & self._stepping

    def nothing_owed(self) -> None:
        """The latest pass was aborted, discarded or settled, or its gradients are no model's."""
        self.sent((), _do_nothing)

    def check_by(self, check: Callable[[Optimizer, bool], None]) -> None:
        """Call a function, too, when an optimizer is about to take a step, before all others.

        It is also told whether a closure will make the gradients.
        """
        self._checks.insert(0, check)

    def check_optimizer(self, optimizer: Optimizer, has_closure: bool = False) -> None:
        """An optimizer is about to take a step, perhaps with a closure that makes the gradients.

        Raises:
            ValueError: it has a momentum of its own beside the recipe's, or another check fails.
        """
        for check in self._checks:
            check(optimizer, has_closure)
        if self._momentum_of is not None:
            refuse_second_momentum(optimizer, self._ids, self._momentum_of)

    def begin_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """An optimizer takes a step; in it a closure runs passes, which make the gradients."""
        ours = [p for p in parameters_of(optimizer) if id(p) in self._ids]
        # What was cleared before is not applied; some optimizers clear gradients themselves.
        ids = {id(p) for p in ours if has_closure or p.grad is not None}
        if has_closure:
            self._stepping = ids or self._stepping
        self._with_gradients[id(optimizer)] = ids

    def end_step(self, optimizer: Optimizer) -> None:
        """An optimizer has taken a step."""
        ids = self._with_gradients.pop(id(optimizer), set())
        if ids:
            self._stepping = set()
            self._stepped |= ids
        if self._owed & ids:
            self._owed -= ids
            self.by = type(optimizer).__name__
            if not self._owed:
                self._settle()

    def before_forward(self) -> None:
        """Where gradients are owed, see what they have become when the next are accumulated.

        Before backward is too soon: they may be cleared between forward and backward.
        """
        if self._looks:
            self._accumulations.watch(self._owed)

    def begin_backward(self) -> None:
        """The same of a sharded model, whose backward pass has not brought any gradient yet."""
        if self._looks:
            self._accumulations.look(self._owed)

    @property
    def _looks(self) -> bool:
        """Whether it matters what the gradients that are owed have become."""
        return bool(self._momentum_of) or (not self._warned and bool(self._owed & self._stepped))

    def check_bucket(self, parameters: Sequence[Tensor]) -> None:
        """Raise where gradients of a bucket are summed with those of a pass that was sent.

        Raises:
            ValueError: see above. A momentum would take in what was sent twice.
        """
        summed = {id(p) for p in parameters} & self._accumulations.summed
        if self._momentum_of and summed:
            raise ValueError(
                f"gradients of {self._some(summed)} are accumulated upon averaged ones, which the "
                "recipe's momentum has taken in already: run all backward passes of a step but the "
                f"last {self._unsent}, passes that only evaluate under "
                "torch.no_grad(), and give what no optimizer clears requires_grad_(False)"
            )

    def check_pass(self) -> None:
        """Warn, once, where gradients that were sent were cleared unused; the pass is over."""
        cleared = self._accumulations.cleared & (self._owed - self._in_step) & self._stepped
        self._accumulations.stop()
        if not cleared or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"gradients of {self._some(cleared)} were sent, and cleared before an optimizer has "
            "applied them: what was sent is lost, and what was not sent will be applied later. If "
            "they are not to be applied, as those of a generator's loss or of a batch that is "
            "skipped, call state.discard() before the next pass; or send none: "
            f"{self._send_none}",
            stacklevel=2,
        )

    def _some(self, ids: set[int]) -> str:
        names = [name for name, p in self._parameters.items() if id(p) in ids]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class _Accumulations:
    """Sees, for some parameters, what their gradients were before others are added.

    Args:
        parameters: by name.

    Attributes:
        summed: ids of those whose old gradient is still there.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._handles: list[RemovableHandle] = []
        self._gone: set[int] = set()
        self._zero: set[int] = set()  # cleared in place; or all that came was zero
        self.summed: set[int] = set()

    @property
    def cleared(self) -> set[int]:
        """Ids of those whose old gradient is gone."""
        return self._gone if self.summed else self._gone | self._zero

    def watch(self, ids: set[int]) -> None:
        """Look at these whenever a gradient comes to them."""
        if self._handles:
            return  # since an earlier forward of this pass
        for parameter in self._parameters.values():
            if id(parameter) in ids and parameter.requires_grad:
                node = torch.autograd.graph.get_gradient_edge(parameter).node
                self._handles.append(node.register_prehook(partial(self._see, parameter)))

    def look(self, ids: set[int]) -> None:
        """Look at these now."""
        for parameter in self._parameters.values():
            if id(parameter) in ids:
                self._see(parameter, None)

    def stop(self) -> None:
        """Forget what was seen."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._gone, self._zero, self.summed = set(), set(), set()

    def _see(self, parameter: Tensor, _: object) -> None:
        """Once a gradient was cleared, whatever is there later is not the old one."""
        key, grad = id(parameter), parameter.grad
        if key in self._gone or key in self._zero:
            return
        if grad is not None and local_of(grad).any():
            self.summed.add(key)
        elif grad is None or key in self.summed:
            self.summed.discard(key)
            self._gone.add(key)
        else:
            self._zero.add(key)


def _do_nothing() -> None:
    pass


_watches: WeakSet[Applied] = WeakSet()


@cache
def _watch_optimizers() -> None:
    """Once for the process: a hook must not remove itself while torch walks through them."""
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    has_closure = len(args) > 1 or bool(kwargs)
    for watch in list(_watches):
        watch.check_optimizer(optimizer, has_closure)
    for watch in list(_watches):
        watch.begin_step(optimizer, has_closure)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for watch in list(_watches):
        watch.end_step(optimizer)
