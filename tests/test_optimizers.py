"""What optimizers tell of themselves: their momentum, what they wrap, whether steps are local."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from ddp_compress import CompressionState, recipes
from ddp_compress.step.guards import check_optimizer, refuse_steps_with_others
from ddp_compress.step.optimizers import layers

Make = Callable[[list[nn.Parameter]], Any]

WITH_A_FIRST_MOMENT = {"Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SparseAdam", "Muon"}
WITHOUT = {"ASGD", "Adadelta", "Adafactor", "Adagrad", "LBFGS", "RMSprop", "Rprop", "SGD"}
TORCHS: dict[str, Any] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
}


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, 3))]


class Grouped(Optimizer):
    """Has what it is given in its groups."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)

    def step(self) -> None:  # type: ignore[override]
        pass


class Wrapping(Grouped):
    """Keeps others in its attributes, in groups of its own."""

    def __init__(self, params: Any, **others: Any) -> None:
        super().__init__(params)
        self.__dict__.update(others)


class Larc:
    """A wrapper that is no Optimizer, as apex's."""

    def __init__(self, optim: Optimizer) -> None:
        self.optim = optim

    @property
    def param_groups(self) -> Any:
        return self.optim.param_groups

    def step(self) -> None:
        self.optim.step()


def test_every_optimizer_of_torch_is_in_the_table():
    assert set(TORCHS) == WITH_A_FIRST_MOMENT | WITHOUT


def adam(p: list[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(p)


MOMENTA: dict[str, tuple[Make, float]] = {
    "SGD": (lambda p: torch.optim.SGD(p, momentum=0.8), 0.8),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, momentum=0.7), 0.7),
    "a tensor": (lambda p: Grouped(p, betas=(torch.tensor(0.5), torch.tensor(0.9))), 0.5),
    "three": (lambda p: Grouped(p, betas=[0.9, 0.99, 0.999]), 0.9),
    "beta1, as Adafactor's": (lambda p: Grouped(p, beta1=0.6), 0.6),
    "beta, as Tiger's": (lambda p: Grouped(p, beta=0.965), 0.965),
    "one of two groups": (lambda p: Grouped([{"params": p, "beta1": 0.4}], beta1=None), 0.4),
    "optim": (lambda p: Wrapping(p, optim=adam(p)), 0.9),
    "base_optimizer": (lambda p: Wrapping(p, base_optimizer=adam(p)), 0.9),
    "in a list": (lambda p: Wrapping(p, all=[torch.optim.SGD(p), adam(p)]), 0.9),
    "in a dict": (lambda p: Wrapping(p, each={"a": adam(p)}), 0.9),
    "two deep": (lambda p: Wrapping(p, inner=Wrapping(p, optimizer=Larc(adam(p)))), 0.9),
}
NONE: dict[str, Make] = {
    "betas of 0": lambda p: torch.optim.Adam(p, betas=(0.0, 0.99)),
    "a tensor of 0": lambda p: Grouped(p, betas=(torch.tensor(0.0), torch.tensor(0.9))),
    "beta1 None, as Adafactor's": lambda p: Grouped(p, beta1=None, beta2_decay=-0.8),
    "beta of a second moment, as Amos's": lambda p: Grouped(p, momentum=0.0, beta=0.999),
    "a wrapper": lambda p: Wrapping(p, optim=torch.optim.SGD(p, momentum=0.0)),
    "a scheduler": lambda p: Wrapping(
        p, scheduler=torch.optim.lr_scheduler.StepLR(torch.optim.SGD(p, lr=0.1), 1)
    ),
}


@pytest.mark.parametrize("name", sorted(WITH_A_FIRST_MOMENT))
def test_torchs_first_moments_are_found(name):
    with pytest.raises(ValueError, match=f"but {name} has a second one of 0.9"):
        check_optimizer(TORCHS[name](parameters()), "dgc")


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_torchs_others_are_left_in_peace(name):
    check_optimizer(TORCHS[name](parameters()), "dgc")


@pytest.mark.parametrize("name", MOMENTA)
def test_a_first_moment_is_found_whatever_it_is_called(name):
    make, momentum = MOMENTA[name]
    with pytest.raises(ValueError, match=f"has a second one of {momentum}: use"):
        check_optimizer(make(parameters()), "dgc")


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_first_moment_is_left_in_peace(name):
    check_optimizer(NONE[name](parameters()), "dgc")


def test_a_wrapped_momentum_is_refused_at_the_first_step():
    net = nn.Linear(3, 2)
    state = CompressionState(net, recipes.dgc(0.1))
    optimizer = Wrapping(net.parameters(), optim=torch.optim.SGD(net.parameters(), momentum=0.9))
    with pytest.raises(ValueError, match=r"but SGD has a second one of 0\.9"):
        optimizer.step()
    assert state.step == 0


def test_a_wrapped_momentum_of_another_model_is_not_refused():
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    state = CompressionState(net, recipes.dgc(0.1))
    both = [torch.optim.SGD(net.parameters(), 0.1), torch.optim.Adam(other.parameters())]
    Wrapping([*net.parameters(), *other.parameters()], optim=both).step()
    both[0] = torch.optim.SGD(net.parameters(), 0.1, momentum=0.5)
    with pytest.raises(ValueError, match=r"but SGD has a second one of 0\.5"):
        Wrapping([*net.parameters(), *other.parameters()], optim=both).step()
    assert state.step == 0


def test_wrappers_may_lead_in_a_circle():
    one, two = Wrapping(parameters()), Wrapping(parameters())
    one.inner, two.outer = two, one  # type: ignore[attr-defined]
    assert layers(one) == [one, two]


# ------------------------------------------------------------------------------- steps with others


def mean_of(tensors: list[nn.Parameter]) -> None:
    for each in tensors:
        dist.all_reduce(each)


class Direct(Grouped):
    def step(self) -> None:  # type: ignore[override]
        [dist.broadcast(p, 0) for group in self.param_groups for p in group["params"]]


class ByMethod(Grouped):
    def step(self) -> None:  # type: ignore[override]
        self.share()

    def share(self) -> None:
        mean_of(self.param_groups[0]["params"])


class Inherited(ByMethod):
    pass


class Waiting(Grouped):
    """As Horovod's, whose collectives are elsewhere."""

    def synchronize(self) -> None:
        pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Direct, r"Direct.step\(\) may call broadcast"),
        (ByMethod, r"ByMethod.step\(\) may call all_reduce"),
        (Inherited, r"Inherited.step\(\) may call all_reduce"),
        (lambda p: Wrapping(p, optim=Larc(Direct(p))), r"Direct.step\(\) may call broadcast"),
    ],
    ids=["in its step", "in a function", "inherited", "wrapped"],
)
def test_an_optimizer_that_may_meet_others_is_told_of(make, words):
    """Some name a collective that they call in other settings alone."""
    with pytest.warns(UserWarning, match=words):
        refuse_steps_with_others(make(parameters()))


@pytest.mark.parametrize("make", [Waiting, lambda p: Wrapping(p, optim=Larc(Waiting(p)))])
def test_an_optimizer_that_meets_others_is_refused(make):
    with pytest.raises(ValueError, match=r"Waiting meets .* \(it has synchronize\).* the optim"):
        refuse_steps_with_others(make(parameters()))


@pytest.mark.parametrize("name", sorted(set(TORCHS) - {"LBFGS"}))
def test_torchs_optimizers_step_by_themselves(name):
    refuse_steps_with_others(TORCHS[name](parameters()))
    refuse_steps_with_others(Wrapping(parameters(), optim=TORCHS[name](parameters())))
