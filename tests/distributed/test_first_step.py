"""What would go on in silence is told at the first step of the optimizer, once, with its cure."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import CompressionState, LocalUpdates, attach, compress_hook, recipes
from tests.distributed.training import backward, small_model

TOPK = recipes.topk(0.1)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 1e-3)


def said(action: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(each.message) for each in caught]


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> list[str]:
    """Three steps, and what is said meanwhile."""

    def train() -> None:
        for number in range(3):
            optimizer.zero_grad()
            if scaler is None:
                backward(model, number)
                optimizer.step()
            else:
                scaler.scale(model(torch.ones(4, 12)).sum()).backward()
                scaler.step(optimizer)
                scaler.update()

    return said(train)


def of_hooks() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    ddp = DistributedDataParallel(small_model())
    unregistered = CompressionState(ddp.module, TOPK)
    found["unregistered"] = steps(ddp, adam(ddp))
    unregistered.needs_no_hook()

    ddp = DistributedDataParallel(small_model())
    bypassed = attach(ddp, TOPK)
    found["bypassed"] = steps(ddp.module, adam(ddp))

    ddp = DistributedDataParallel(small_model())
    excused = CompressionState(ddp, TOPK)
    excused.needs_no_hook()
    found["excused"] = steps(ddp, adam(ddp))

    alone = small_model()
    reduced = CompressionState(alone, TOPK)
    found["alone"] = steps(alone, adam(alone))

    ddp = DistributedDataParallel(small_model())
    local = CompressionState(ddp, TOPK)
    found["local"] = steps(ddp, LocalUpdates(adam(ddp), ddp, local, period=2))

    ddp = DistributedDataParallel(small_model())
    registered = CompressionState(ddp.module, TOPK)
    ddp.register_comm_hook(registered, compress_hook)
    found["registered"] = steps(ddp, adam(ddp))
    del bypassed, reduced
    return found


def test_a_state_that_no_hook_calls(ranks):
    (found,) = ranks.run(1, of_hooks)
    (unregistered,), (bypassed,) = found.pop("unregistered"), found.pop("bypassed")
    assert "no hook calls it. Register one, as dc.attach(model, recipe) does" in unregistered
    assert "no pass went through its DDP model" in bypassed
    assert found == {key: [] for key in ("excused", "alone", "local", "registered")}


def of_scalers() -> dict[str, list[str]]:
    def with_scaler(tell: bool, enabled: bool = True, used: bool = True) -> list[str]:
        ddp = DistributedDataParallel(small_model())
        state = attach(ddp, TOPK)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=enabled)
        if tell:
            state.use_scaler(scaler)
        other = small_model()
        scaler.scale(other(torch.ones(1, 12)).sum()).backward()
        return steps(ddp, torch.optim.SGD(ddp.parameters(), 0.01), scaler if used else None)

    return {
        "untold": with_scaler(tell=False),
        "told": with_scaler(tell=True),
        "disabled": with_scaler(tell=False, enabled=False),
        "of others": with_scaler(tell=False, used=False),
    }


def test_a_scaler_that_the_state_was_not_told_of(ranks):
    (found,) = ranks.run(1, of_scalers)
    (untold,) = found.pop("untold")
    assert "Call state.use_scaler(scaler) before the first step" in untold
    assert found == {key: [] for key in ("told", "disabled", "of others")}


def of_resuming() -> dict[str, list[str]]:
    before = DistributedDataParallel(small_model())
    trained, first = adam(before), attach(before, TOPK)
    assert steps(before, trained) == []
    saved, kept = trained.state_dict(), first.state_dict()
    momentum = torch.optim.SGD(before.parameters(), 0.1, momentum=0.9)
    steps(before, momentum)

    def resumed(load: bool, optimizer: Any = adam, state: Any = saved, **options: Any) -> list[str]:
        ddp = DistributedDataParallel(small_model())
        compression = attach(ddp, TOPK, **options)
        if load:
            compression.load_state_dict(kept)
        ours = optimizer(ddp)
        ours.load_state_dict(state)
        return steps(ddp, ours)

    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    ddp = DistributedDataParallel(small_model())
    made, optimizer = attach(ddp, TOPK), adam(ddp)
    for p in ddp.parameters():  # as DCP has an optimizer's state made, to know its shape
        p.grad = torch.zeros_like(p)
    optimizer.step()
    made_up = steps(ddp, optimizer)
    del made
    return {
        "adam": resumed(load=False),
        "sgd": resumed(load=False, optimizer=sgd, state=momentum.state_dict()),
        "loaded": resumed(load=True),
        "on purpose": resumed(load=False, start_step=0),
        "from 3": resumed(load=False, start_step=3),
        "made up": made_up,
    }


def test_a_fresh_state_under_trained_weights(ranks):
    (found,) = ranks.run(1, of_resuming)
    (by_adam,), (by_sgd,) = found.pop("adam"), found.pop("sgd")
    assert "Adam has taken 3 steps" in by_adam
    assert "start_step=3 to go on" in by_adam
    assert "SGD has taken some steps" in by_sgd
    assert found == {key: [] for key in ("loaded", "on purpose", "from 3", "made up")}
