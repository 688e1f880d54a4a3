"""Federated dropout on several ranks: under LocalUpdates, under a hook, a sub-model a rank."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import (
    CompressionState,
    FederatedDropout,
    LocalUpdates,
    PeerError,
    attach,
    recipes,
)
from tests.distributed.training import digest, loss
from tests.table import OPTIONS, RECIPES, ROWS, Row, every_family

STEPS = 3  # local ones in a round


def model() -> nn.Sequential:
    """The same on every rank."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(
            nn.Linear(12, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Linear(24, 14), nn.Linear(14, 3)
        )


def everything(module: nn.Module) -> str:
    return digest(module.state_dict().values())


def same_everywhere(value: Any) -> bool:
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, value)
    return all(other == value for other in everywhere)


def train(ddp: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        loss(ddp, dist.get_rank(), number).backward()
        optimizer.step()


def sgd(module: nn.Module, momentum: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=momentum)


class Training:
    """One sub-model for all ranks, under LocalUpdates."""

    def __init__(self, row: Row) -> None:
        self.full = model()
        self.dropout = FederatedDropout(self.full, rate=0.75, seed=5)
        ddp = DistributedDataParallel(self.dropout.sub_model)
        self.state = CompressionState(ddp, row.recipe, min_numel=row.min_numel)
        inner = sgd(ddp, 0.0 if row.momentum else 0.9)
        self.optimizer = LocalUpdates(inner, ddp, self.state, period=STEPS)
        self.ddp = ddp
        self.dropout.attach(self.optimizer)

    def steps(self, numbers: range) -> Iterator[int]:
        """Train; yields when a step is over."""
        for number in numbers:
            if number % STEPS == 0:
                self.dropout.draw(number // STEPS)
            train(self.ddp, self.optimizer, range(number, number + 1))
            if number % STEPS == STEPS - 1:
                self.dropout.merge()
            yield number + 1

    def parts(self) -> dict[str, Any]:
        return {
            "full": self.full,
            "sub": self.dropout.sub_model,
            "dropout": self.dropout,
            "optimizer": self.optimizer,
            "state": self.state,
        }

    def save(self) -> dict[str, Any]:
        return copy.deepcopy({name: part.state_dict() for name, part in self.parts().items()})

    def load(self, saved: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])


def shared_rounds(row: Row) -> None:
    training = Training(row)
    saved = {}
    for step in training.steps(range(5 * STEPS)):
        if step % STEPS == 0:
            assert same_everywhere(everything(training.full)), step
        if step in (2 * STEPS, 2 * STEPS + 1):  # between two rounds, and in the middle of one
            saved[step] = training.save()
    assert training.state.stats.steps == 5
    for step, checkpoint in saved.items():
        resumed = Training(row)
        resumed.load(checkpoint)
        list(resumed.steps(range(step, 5 * STEPS)))
        assert everything(resumed.full) == everything(training.full), step


@every_family
def test_one_sub_model_for_all_with_any_recipe_and_resumed(ranks, row):
    ranks.run(2, shared_rounds, row)


def averaged_by_hand() -> None:
    """Without compression a round averages the ranks' sub-models."""
    training = Training(Row(recipes.topk(1.0)))
    training.dropout.draw(0)
    twin = copy.deepcopy(training.dropout.sub_model)
    train(training.ddp, training.optimizer, range(STEPS))
    train(twin, sgd(twin, 0.9), range(STEPS))
    training.dropout.merge()
    units = training.dropout.kept(0)["0"]
    ours, theirs, before = (
        m.get_parameter("0.weight").detach() for m in (training.full, twin, model())
    )
    dist.all_reduce(theirs)
    torch.testing.assert_close(ours[units], theirs / dist.get_world_size())
    dropped = torch.ones(24, dtype=torch.bool).index_fill(0, units, False)
    assert torch.equal(ours[dropped], before[dropped])


def test_a_round_is_the_mean_of_local_training(ranks):
    ranks.run(3, averaged_by_hand)


def under_a_hook(row: Row) -> None:
    full = model()
    dropout = FederatedDropout(full, rate=0.5)
    ddp = DistributedDataParallel(dropout.sub_model)
    dropout.attach(attach(ddp, row.recipe))
    for number in range(4):
        dropout.draw(number)
        train(ddp, sgd(ddp), range(3 * number, 3 * number + 3))
        dropout.merge()
        assert same_everywhere(digest(full.parameters()))
    assert any(t.any() for each in dropout.state_dict()["waiting"].values() for t in each.values())


@pytest.mark.parametrize("name", ["topk", "sbc-momentum", "vote-add-drop-sharded"])
def test_gradients_of_a_sub_model_through_a_hook(ranks, name):
    ranks.run(2, under_a_hook, (RECIPES | OPTIONS)[name])


def another_round() -> None:
    """Units of one rank would be averaged with others of the other."""
    dropout = FederatedDropout(model(), rate=0.5)
    ddp = DistributedDataParallel(dropout.sub_model)
    dropout.attach(attach(ddp, recipes.topk(0.1)))
    dropout.draw(0)
    train(ddp, sgd(ddp), range(1))
    dropout.draw(1 + dist.get_rank())
    with pytest.raises(PeerError, match="sub-model"):
        train(ddp, sgd(ddp), range(1))


def test_ranks_in_different_rounds_are_told(ranks):
    ranks.run(2, another_round)


# ------------------------------------------------------------------------------ a sub-model a rank


def own(row: Row, full: nn.Module) -> tuple[FederatedDropout, CompressionState]:
    dropout = FederatedDropout(full, rate=0.5, seed=2, per_rank=True)
    state = CompressionState(full, row.recipe, min_numel=row.min_numel)
    dropout.attach(state)
    return dropout, state


def own_round(dropout: FederatedDropout, number: int) -> None:
    dropout.draw(number)
    train(dropout.sub_model, sgd(dropout.sub_model), range(3 * number, 3 * number + 3))


def own_rounds(row: Row) -> None:
    full = model()
    dropout, state = own(row, full)
    for number in range(4):
        own_round(dropout, number)
        assert not same_everywhere(everything(dropout.sub_model))
        dropout.merge()
        assert same_everywhere(everything(full)), number
    assert state.step == 4


@every_family
def test_a_sub_model_a_rank_with_any_recipe(ranks, row):
    ranks.run(2, own_rounds, row)


def averaged_over_holders() -> None:
    full, before = model(), model()
    dropout, _ = own(Row(recipes.topk(1.0)), full)
    own_round(dropout, 0)
    learned: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(learned, dropout.sub_model.state_dict())
    dropout.merge()
    names = {"0.weight": ("0",), "1.running_mean": ("0",), "3.weight": ("3", "0"), "4.bias": ()}
    for name, layers in names.items():
        then, now = (m.state_dict()[name] for m in (before, full))
        total, holders = torch.zeros_like(then), torch.zeros_like(then)
        for rank, theirs in enumerate(learned):
            kept = [dropout.kept(0, rank)[layer] for layer in layers]
            where = [torch.zeros(n, dtype=torch.bool) for n in then.shape[: len(kept)]]
            for flags, units in zip(where, kept, strict=True):
                flags[units] = True
            held = torch.ones((), dtype=torch.bool)
            if len(where) == 1:
                held = where[0].view(-1, *[1] * (then.dim() - 1))
            elif len(where) == 2:
                held = where[0][:, None] & where[1]
            held = held.expand_as(then)
            total[held] += theirs[name].flatten() - then[held]
            holders += held
        assert layers == () or 0 in holders, "some coordinates nobody held"
        torch.testing.assert_close(now, then + total / holders.clamp(min=1))
    assert int(full.state_dict()["1.num_batches_tracked"]) == 3


def test_updates_are_averaged_over_the_ranks_that_hold_them(ranks):
    ranks.run(3, averaged_over_holders)


def lost_round() -> None:
    full = model()
    dropout, state = own(ROWS["topk"], full)
    own_round(dropout, 0)
    dropout.merge()
    before = everything(full)
    own_round(dropout, 1)
    if dist.get_rank() == 1:
        dropout.sub_model.get_parameter("0.weight").data[0, 0] = math.nan
    dropout.merge()
    assert everything(full) == before
    assert (state.step, state.stats.aborted) == (1, 1)


def test_a_round_with_nan_on_one_rank_is_lost_on_all(ranks):
    ranks.run(2, lost_round)


def failed_round() -> None:
    full = model()
    dropout = FederatedDropout(full, seed=dist.get_rank(), per_rank=True)
    dropout.attach(CompressionState(full, recipes.topk(0.1)))
    before = everything(full)
    own_round(dropout, 0)
    with pytest.raises(PeerError, match="'seed': 1"):
        dropout.merge()
    assert everything(full) == before


def test_ranks_with_different_seeds_are_told_and_nothing_changes(ranks):
    ranks.run(2, failed_round)


def restarted() -> None:
    """Momentum of the last round's units does not reach the next."""
    training = Training(Row(recipes.topk(1.0)))
    list(training.steps(range(STEPS)))
    assert any(training.optimizer.inner.state.values())
    training.dropout.draw(1)
    assert not any(training.optimizer.inner.state.values())
    assert training.optimizer.param_groups[0]["momentum"] == 0.9


def test_local_momentum_starts_anew_in_every_round(ranks):
    ranks.run(1, restarted)
