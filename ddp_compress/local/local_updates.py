"""An optimizer that steps locally, and exchanges weight differences every H steps."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from ddp_compress.checks import check_count, check_one_of, check_type
from ddp_compress.hook import Passes
from ddp_compress.local.checkpoint import check_form, is_finite
from ddp_compress.local.models import model_of
from ddp_compress.local.roll_call import Answer
from ddp_compress.local.round import Outer, Round, add_mean
from ddp_compress.step import guards
from ddp_compress.step.find_model import find_model
from ddp_compress.step.optimizers import parameters_of
from ddp_compress.step.sharded_model import local_of
from ddp_compress.step.state import CompressionState

Period = int | Callable[[int], int]


class LocalUpdates(Optimizer):
    """An optimizer that steps locally and meets the other ranks every H steps.

    With w a rank's weights and a the *anchor*, the weights that all ranks had after the last
    round, a round is::

        a = outer.step(a, gradient = -mean over ranks of recipe(w - a));  w = a

    so every rank leaves it with bit-identical weights; what a recipe did not send stays in its
    residual. In between no gradient travels, and DDP no longer broadcasts buffers before each
    forward: ``ddp_model.broadcast_buffers`` is switched off. (With ``find_unused_parameters`` DDP
    still shares which parameters were used.)

    The first anchor is what the weights are at the first forward pass of ``ddp_model``, or before
    the first ``step()`` after passes that went past it, so they may be loaded until then. Later
    `load_state_dict` must bring the anchor along: weights loaded without it count as moved by the
    steps, and most of that stays in the residual. (So do edits that are meant as part of a step,
    such as clamped weights, and a check could not tell them apart.)

    A step is counted when its backward pass is over, not by ``step()``, and passes in ``no_sync``
    are not counted, so that ranks meet even if some skip a step alone. Where DDP has seen no pass
    since the last ``step()``, because all were in ``no_sync`` or went through ``ddp_model.module``,
    a ``step()`` that finds gradients counts for one. A round that is due runs at the end of
    ``step()``, also of one that a ``torch.amp.GradScaler`` lets this optimizer skip; or, where
    ``step()`` was not called, before the next training forward or in `synchronize`.

    Every meeting begins with a few bytes in which each rank says why it has come: for a round that
    is due, of which period and after how many steps, or to `synchronize`. Where ranks differ, as
    with uneven numbers of batches, all of them raise at once.

    If any rank's weights are not finite, the round is lost on all of them: weights and buffers go
    back to what they were after the last one, and residuals and ``outer`` stay as they are. The
    inner optimizer's state alone may tell of the lost steps: where it is no longer finite it is
    reset to that of its wrapping, else it is kept.

    Memory: beside the model, the inner optimizer and the recipe's, the anchor takes 4 bytes a
    parameter (8 where one is fp64) and ``outer`` what it keeps, such as 4 more for a momentum; a
    round takes 8 more while it lasts, differences and their mean. Buffers are kept once more.

    Known cases: FedAvg and local SGD, ``recipes.topk(density=1.0, exchange="union")``; SBC(2),
    ``recipes.sbc(density=0.01)`` with ``period=10``, and SBC(3), with ``period=100``; SSGD-MV-L4,
    ``recipes.majority_vote(density=0.01)`` with ``period=4``; DiLoCo,
    ``outer=lambda anchor: torch.optim.SGD(anchor, lr=0.7, momentum=0.9, nesterov=True)``.

    Everything else that an optimizer has (``param_groups``, ``state``, ``defaults``, step hooks) is
    the inner one's. Give this one to schedulers and to ``GradScaler``.

    Args:
        optimizer: takes the local steps; any whose ``step()`` needs no closure, with a momentum of
            its own. If the recipe keeps one, as ``dgc`` does, it is one over rounds: then neither
            this nor ``outer`` may have another.
        ddp_model: no communication hook may be registered on it. Or a model that `fully_shard` has
            cut up, see `attach`: rounds are of every rank's shards then.
        state: of this model, and not registered as its hook. Its ``step`` counts rounds, and so do
            its recipe's schedules.
        period: local steps between rounds, H, at least 1; or a schedule, ``state.step -> H``, the
            same on all ranks.
        outer: makes the optimizer of the anchor, from its tensors; None for ``a += mean``.
        buffers: what a round does to them. ``"average"``: floating-point ones are averaged, others
            become rank 0's; 32 bits an element, uncompressed, counted in ``state.stats``. What no
            rank has changed since the last round does not travel. ``"keep"``: every rank keeps its
            own.

    Attributes:
        inner: the optimizer of the local steps.
        outer: the optimizer of the anchor.
        compression: what weight differences travel through.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument does not fit: a period below 1, a model with a hook, a state of
            another model or of other ranks, a momentum beside the recipe's, an optimizer that needs
            a closure, meets other ranks by itself or has other parameters.
        PeerError: from a round, on every rank, where ranks differ or one failed. Nothing has
            changed then.

    Source: McMahan et al., Communication-Efficient Learning (2017); Sattler et al., Sparse Binary
    Compression (2018), §III; Douillard et al., DiLoCo (2023).

    Example:
        >>> import ddp_compress as dc, torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = DistributedDataParallel(torch.nn.Linear(4, 2))
        >>> state = dc.CompressionState(model, dc.recipes.sbc(density=0.01))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = LocalUpdates(sgd, model, state, period=10)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(3, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> state.stats.steps
        2
        >>> dist.destroy_process_group()
    """

    # GradScaler then calls `step` whatever it found in the gradients. Were it to skip the call on
    # one rank, that rank would come to a round later than the others.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        optimizer: Optimizer,
        ddp_model: nn.Module,
        state: CompressionState,
        period: Period,
        outer: Outer | None = None,
        buffers: Literal["average", "keep"] = "average",
    ) -> None:
        check_type("optimizer", optimizer, Optimizer)
        ddp_model = find_model(ddp_model, "ddp_model")
        check_type("state", state, CompressionState)
        if outer is not None and not callable(outer):
            raise TypeError(f"outer must make an optimizer from a list of tensors, got {outer!r}")
        if not callable(period):
            check_count("period", period, least=1)
        check_one_of("buffers", buffers, ["average", "keep"])
        model = model_of(ddp_model)
        guards.refuse_steps_with_others(optimizer)
        module, ignored, named = model.module, model.ignored, model.named
        shared = [p for n, p in named.items() if p.requires_grad and n not in ignored]
        weights = dict(zip(state.layout(shared).names, shared, strict=True))
        known = {*map(id, shared), *(id(p) for n, p in named.items() if n in ignored)}
        guards.refuse_unknown_parameters(optimizer, known, module)
        model.check_state(state)
        state.needs_no_hook()
        self._round = Round(
            state, module, weights, outer or add_mean, buffers == "average", ignored
        )
        self.inner = optimizer
        self.outer = self._round.outer
        self.compression = state
        if "momentum" in state.recipe.memory.tensors:
            for each in (self.inner, self.outer):
                guards.check_optimizer(each, state.recipe.name)
        self._model = model
        self._period = period
        self._fresh = copy.deepcopy(optimizer.state_dict()["state"])
        self._fresh_outer = copy.deepcopy(self.outer.state_dict()["state"])
        self._known = known
        self._begun = False
        self._passes = Passes()
        self._met_at = self._stepped_at = 0  # passes at the last round, and at the last step()
        model.follow(self._passes, self._before_forward)

    def __getattr__(self, name: str) -> Any:
        """What this optimizer does not have itself."""
        if name == "inner":  # not yet made
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __getstate__(self) -> dict[str, Any]:
        """Refused: a copy would meet other ranks that have none."""
        raise TypeError("LocalUpdates cannot be copied or pickled: save its state_dict()")

    def __repr__(self) -> str:
        return f"LocalUpdates({self.inner!r}, period={self._period!r}, outer={self.outer!r})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See `torch.optim.Optimizer.zero_grad`."""
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`."""
        self.inner.add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a local step; meet the other ranks if a round is due.

        Args:
            closure: computes the gradients, and is called once.

        Returns:
            What ``closure`` gave.

        Raises:
            ValueError: a parameter was unfrozen or added that the rounds do not know.
            PeerError: see the class.
        """
        guards.refuse_unknown_parameters(self.inner, self._known, self._model.module)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._count()
        if self._unscale():
            self.inner.step()
        self._meet_if_due()
        return loss

    def synchronize(self) -> None:
        """Meet the other ranks now, before the period is over; all of them must call it.

        For the end of training, or to evaluate. Ranks may have taken different numbers of steps
        since the last round, and where none has taken any, nothing is done.

        Raises:
            PeerError: on every rank, where another has a round due, because it had more batches;
                and see the class.
        """
        self._follow()
        self._meet_if_due()  # as the others did, where this rank alone skipped a step
        self._meet()

    def restart(self) -> None:
        """Begin anew at the model's weights and buffers of now, which all ranks must share.

        For what changes weights between two rounds, such as `FederatedDropout`. Both optimizers
        forget what they kept of the weights before, and local steps since the last round are not
        sent.
        """
        self._round.restart()
        _set_state(self.inner, self._fresh)
        _set_state(self.outer, self._fresh_outer)
        self._met_at = self._passes.count

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers, the anchor, and how far this rank is in its period.

        The weights are not among them: in the middle of a period every rank has its own, to be
        saved with the model and loaded after it was wrapped in DDP, which broadcasts rank 0's.
        Residuals are in the state's own ``state_dict``.
        """
        self._follow()
        return {
            "inner": self.inner.state_dict(),
            "outer": self.outer.state_dict(),
            "anchor": {name: t.clone() for name, t in self._round.anchor.weights.items()},
            "buffers": {name: t.clone() for name, t in self._round.buffers.last_synced.items()},
            "passes": self._local_steps,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, of the same model and optimizers.

        Raises:
            ValueError: it does not fit. Nothing has changed then.
        """
        check_form(state_dict, self.inner, self._round)
        self.inner.load_state_dict(state_dict["inner"])
        self.outer.load_state_dict(state_dict["outer"])
        self._round.anchor.load(state_dict["anchor"])
        self._round.buffers.load(state_dict["buffers"])
        self._begun = True
        self._met_at = self._passes.count - state_dict["passes"]

    # ------------------------------------------------------------------------------------ rounds

    @property
    def _local_steps(self) -> int:
        """Passes since the last round."""
        return self._passes.count - self._met_at

    def _count(self) -> None:
        """Where DDP has seen no pass since the last ``step()``, gradients tell of one."""
        has_gradients = (p.grad is not None for p in parameters_of(self))
        if self._passes.count == self._stepped_at and any(has_gradients):
            if not self._begun:
                self._round.anchor.keep()  # of buffers the forward pass may have moved some
                self._begun = True
            self._passes.count += 1
        self._stepped_at = self._passes.count

    def _unscale(self) -> bool:
        """Do as `torch.amp.GradScaler` would; whether this rank's gradients are good for a step."""
        found, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found is not None and found.item():
            return False
        if scale is not None:
            inverse = scale.double().reciprocal().float()
            for grad in (p.grad for p in parameters_of(self) if p.grad is not None):
                local_of(grad).mul_(inverse.to(grad.device))
        return True

    def _before_forward(self) -> None:
        self._follow()
        self._begun = True
        if self._model.trains:
            self._meet_if_due()  # where a step was skipped: as the others did

    def _follow(self) -> None:
        """Until the first forward pass, weights and buffers may be loaded."""
        if not self._begun:
            self._round.restart()

    def _meet_if_due(self) -> None:
        try:
            due = self._local_steps >= self._period_now()
        except Exception:  # of the schedule: the other ranks must hear of it when they meet
            due = True
        if due:
            self._meet()

    def _period_now(self) -> int:
        if not callable(self._period):
            return self._period
        number = self.compression.step
        period = self._period(number)
        check_count(f"period schedule {self._period!r} at round {number}", period, least=1)
        return period

    def _meet(self) -> None:
        finite = self._round.meet(self._answer)
        if finite is None:
            return
        self._begun = True
        self._met_at = self._passes.count
        if not finite and not is_finite(list(self.inner.state.values())):
            _set_state(self.inner, self._fresh)

    def _answer(self) -> Answer:
        """For the others, also what ``step()`` has refused on this rank alone."""
        guards.refuse_unknown_parameters(self.inner, self._known, self._model.module)
        passes, period = self._local_steps, self._period_now()
        return Answer(period if passes >= period else 0, passes)


def _set_state(optimizer: Optimizer, state: Mapping[Any, Any]) -> None:
    """Give an optimizer a copy of a state, and leave its options as they are."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": copy.deepcopy(state), "param_groups": groups})
