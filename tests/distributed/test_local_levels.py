"""LocalUpdates on two levels: over the shards of FSDP2 models, and over nodes."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from ddp_compress import CompressionState, LocalUpdates, PerRank, recipes
from ddp_compress.local.buffers import Buffers
from tests.distributed.nodes import on_nodes
from tests.distributed.shards import local, mesh_of, sharded
from tests.distributed.test_laws_on_ranks import same_everywhere
from tests.distributed.test_local_updates import DENSE, TOPK, diloco, norms, poisoned_rounds, sgd
from tests.distributed.test_local_updates import train as train_locally
from tests.distributed.test_local_updates import wrap as wrap_locally
from tests.distributed.test_sharded_models import said
from tests.distributed.training import digest, loss, memory, small_model, weights
from tests.table import Row

SBC = Row(recipes.sbc(density=0.05))
Outer = Callable[[list[Tensor]], torch.optim.Optimizer]


def wrap(
    model: nn.Module, row: Row, period: Any = 3, outer: Outer | None = None
) -> tuple[Any, CompressionState, LocalUpdates]:
    """The model cut up, over whose shards rounds are held."""
    mesh = mesh_of(2)
    cut = sharded(model, mesh["shard"])
    group = mesh["replicate"].get_group()
    state = CompressionState(cut, row.recipe, group, min_numel=row.min_numel)
    return cut, state, LocalUpdates(sgd(cut), cut, state, period, outer)


def train(model: Any, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        loss(model, dist.get_rank(), number).backward()
        optimizer.step()


def by_hand(row: Row, period: int, outer: Outer | None, steps: int) -> str:
    """Local steps of FSDP, and rounds in plain torch but for the recipe."""
    mesh = mesh_of(2)
    model = sharded(small_model(), mesh["shard"])
    state = CompressionState(model, row.recipe, mesh["replicate"].get_group())
    named = {name: local(p) for name, p in model.named_parameters()}
    anchor = {name: shard.clone() for name, shard in named.items()}
    step = (outer or (lambda tensors: torch.optim.SGD(tensors, lr=1.0)))(list(anchor.values()))
    optimizer = sgd(model)
    for number in range(steps):
        train(model, optimizer, range(number, number + 1))
        if number % period == period - 1:
            means = state.reduce({name: shard - anchor[name] for name, shard in named.items()})
            for name, weight in anchor.items():
                weight.grad = -means[name]
            step.step()
            for name, shard in named.items():
                shard.copy_(anchor[name])
    return weights(model)


def beside_rounds_by_hand(row: Row, period: int, outer: Outer | None, steps: int) -> str:
    model, state, optimizer = wrap(small_model(), row, period, outer)
    train(model, optimizer, range(steps))
    assert state.step == steps // period
    assert weights(model) == by_hand(row, period, outer, steps)
    return weights(model)


@pytest.mark.parametrize(
    ("row", "period", "outer"), [(DENSE, 3, diloco), (SBC, 4, None)], ids=["diloco", "sbc"]
)
def test_rounds_are_of_shards(ranks, row, period, outer):
    same_everywhere(ranks.run(4, beside_rounds_by_hand, row, period, outer, 2 * period))


def between_rounds() -> None:
    """No gradient leaves its replica; passes without sync do not count."""
    model, state, optimizer = wrap(small_model(), DENSE, period=2)
    for number in range(4):
        model.set_requires_gradient_sync(False)
        loss(model, dist.get_rank(), 2 * number).backward()
        model.set_requires_gradient_sync(True)
        before = state.stats.collectives
        loss(model, dist.get_rank(), 2 * number + 1).backward()
        assert state.stats.collectives == before
        optimizer.step()
        optimizer.zero_grad()
        assert state.step == (number + 1) // 2
    replicas = [local(p).clone() for p in model.parameters()]
    train(model, optimizer, range(8, 9))
    with torch.no_grad():
        loss(model, dist.get_rank(), 0)  # leaves the root's weights gathered
    optimizer.synchronize()
    assert state.step == 3
    assert not all(map(torch.equal, replicas, map(local, model.parameters())))
    with torch.no_grad():
        told = loss(model, 0, 0)
    model.reshard()
    bare = small_model()
    bare.load_state_dict({name: p.full_tensor() for name, p in model.named_parameters()})
    torch.testing.assert_close(told, loss(bare, 0, 0))


def test_replicas_go_their_own_way_between_rounds(ranks):
    ranks.run(4, between_rounds)


def told_in_a_round() -> list[str]:
    """What fails on one rank of one replica, all ranks are told, and nothing is lost."""
    rank, told = dist.get_rank(), []
    model, state, optimizer = wrap(norms(), TOPK, outer=diloco)
    train(model, optimizer, range(3))
    before = memory(state), digest(optimizer.state_dict()["anchor"].values())
    places = [(optimizer._round.anchor, "delta"), (Buffers, "moved"), (optimizer, "_period_now")]
    for number, (owner, name) in enumerate(places):

        def fail(*_: object, place: str = name) -> None:
            raise ArithmeticError(f"in {place}")

        with pytest.MonkeyPatch.context() as patch:
            if rank == 3:
                patch.setattr(owner, name, fail)
            told.append(said(partial(train, model, optimizer, range(number, 9))))
        assert (memory(state), digest(optimizer.state_dict()["anchor"].values())) == before
    optimizer.synchronize()
    assert state.step == 2
    return [*told, weights(model)]


def test_what_fails_on_one_rank_in_a_round_is_told_to_all(ranks):
    *told, end = same_everywhere(ranks.run(4, told_in_a_round))
    for message, place in zip(told, ("delta", "moved", "_period_now"), strict=True):
        assert message == f"PeerError: rank 3 failed: ArithmeticError: in {place}"
    assert end


def other_periods() -> str:
    model, _, optimizer = wrap(small_model(), TOPK, period=2 + dist.get_rank() // 2)
    return said(lambda: train(model, optimizer, range(9)))


def test_replicas_that_meet_for_other_reasons_are_told(ranks):
    for rank, message in enumerate(ranks.run(4, other_periods)):
        assert f"rank {2 + rank % 2} differs from rank {rank % 2}" in message
        assert "a round of period 3 is due" in message


def poisoned_round(poison: float) -> str:
    model, state, optimizer = wrap(small_model(), TOPK, outer=diloco)
    twin, _, its_optimizer = wrap(small_model(), TOPK, outer=diloco)
    train(model, optimizer, range(3))
    train(twin, its_optimizer, range(3))
    before = memory(state), weights(model)
    train(model, optimizer, range(90, 92))
    if dist.get_rank() == 1:
        local(model[4].weight)[0, 0] = poison
    train(model, optimizer, range(92, 93))
    assert (memory(state), weights(model)) == before
    assert (state.stats.aborted, state.step) == (1, 1)
    its_optimizer.inner.load_state_dict(copy.deepcopy(optimizer.inner.state_dict()))
    train(model, optimizer, range(3, 6))
    train(twin, its_optimizer, range(3, 6))
    assert weights(model) == weights(twin)
    return weights(model)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_round_with_a_poisoned_shard_never_was(ranks, poison):
    same_everywhere(ranks.run(4, poisoned_round, poison))


def in_dcp(folder: Path) -> None:
    """Saved in the middle of a period."""
    model, state, optimizer = wrap(small_model(), SBC, outer=diloco)
    train(model, optimizer, range(4))
    parts = {"model": PerRank(model), "state": PerRank(state), "optimizer": PerRank(optimizer)}
    dcp.save(parts, checkpoint_id=folder)
    train(model, optimizer, range(4, 7))
    again, fresh, resumed = wrap(small_model(), SBC, outer=diloco)
    parts = {"model": PerRank(again), "state": PerRank(fresh), "optimizer": PerRank(resumed)}
    dcp.load(parts, checkpoint_id=folder)
    train(again, resumed, range(4, 7))
    assert weights(again) == weights(model)
    assert memory(fresh) == memory(state)


def test_a_resumed_run_equals_the_uninterrupted_one(ranks, tmp_path):
    ranks.run(4, in_dcp, tmp_path)


# ---------------------------------------------------------------------------------------- of nodes


def rounds(row: Row, steps: int) -> list[Tensor]:
    ddp, _, optimizer = wrap_locally(small_model(), row, period=3, outer=diloco)
    train_locally(ddp, optimizer, range(steps))
    return [p.detach() for p in ddp.parameters()]


def flat_and_in_nodes() -> str:
    """Dense, a round over nodes is one over all ranks."""
    flat = rounds(DENSE, 6)
    of_nodes = on_nodes(2, rounds, DENSE, 6)
    for ours, theirs in zip(of_nodes, flat, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    return digest(of_nodes)


def test_rounds_over_nodes_are_rounds_over_all(ranks):
    same_everywhere(ranks.run(4, flat_and_in_nodes))


@pytest.mark.parametrize("row", [TOPK, SBC], ids=["topk", "sbc"])
def test_a_poisoned_round_over_nodes_never_was(ranks, row):
    same_everywhere(ranks.run(4, on_nodes, 2, poisoned_rounds, row, 2))
