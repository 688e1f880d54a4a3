"""Communication delay: local steps, rounds, and everything that may go wrong between two rounds."""

import contextlib
import copy
import io
import math
import pickle
import random
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import CompressionState, LocalUpdates, PeerError, attach, recipes
from tests.distributed.training import MANY_BUCKETS, digest, loss, memory, small_model, weights
from tests.table import ROWS, Row, every_family

TOPK = Row(recipes.topk(0.1))
DENSE = Row(recipes.topk(1.0))
POISONS = (math.inf, -math.inf, math.nan)


def diloco(anchor: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(anchor, lr=0.7, momentum=0.9, nesterov=True)


def sgd(model: nn.Module, momentum: float = 0.9) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)


def wrap(
    model: nn.Module,
    row: Row = TOPK,
    inner: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    period: Any = 3,
    bucket_cap_mb: float = MANY_BUCKETS,
    **options: Any,
) -> tuple[DistributedDataParallel, CompressionState, LocalUpdates]:
    ddp = DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb)
    state = CompressionState(ddp, row.recipe, min_numel=row.min_numel)
    return ddp, state, LocalUpdates(inner(ddp), ddp, state, period, **options)


def train(ddp: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        loss(ddp, dist.get_rank(), number).backward()
        optimizer.step()


def gradient(model: nn.Module) -> Tensor:
    """Of the first parameter."""
    found = next(model.parameters()).grad
    assert found is not None
    return found


def same_everywhere(results):
    assert all(result == results[0] for result in results)
    return results[0]


def all_equal(digest_here: str) -> bool:
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, digest_here)
    return len(set(everywhere)) == 1


# ------------------------------------------------------------------------------------- the rounds


def beside_a_loop_by_hand(row: Row, outer: Callable[..., Any] | None, periods: list[int]) -> str:
    """The same in plain torch: local steps without DDP, then `reduce` of another state."""
    momentum = 0.0 if row.momentum else 0.9
    ddp, state, optimizer = wrap(
        small_model(), row, lambda m: sgd(m, momentum), period=lambda n: periods[n], outer=outer
    )
    plain = small_model()
    twin = CompressionState(plain, row.recipe, min_numel=row.min_numel)
    inner, start = sgd(plain, momentum), 0
    anchor = [p.detach().clone() for p in plain.parameters()]
    over = (outer or (lambda a: torch.optim.SGD(a, lr=1.0)))(anchor)
    for number, period in enumerate(periods[:-1]):
        numbers = range(start, start + period)
        train(ddp, optimizer, numbers[:-1])
        assert period == 1 or not all_equal(weights(ddp)), "ranks step locally"
        assert state.step == number, "too early"
        train(ddp, optimizer, numbers[-1:])
        train(plain, inner, numbers)
        start += period
        parameters = dict(plain.named_parameters())
        moved = {n: p.detach() - a for (n, p), a in zip(parameters.items(), anchor, strict=True)}
        mean = twin.reduce(moved)
        for then, name in zip(anchor, parameters, strict=True):
            then.grad = -mean[name]
        over.step()
        for parameter, then in zip(plain.parameters(), anchor, strict=True):
            parameter.data.copy_(then)
        assert weights(ddp) == weights(plain), number
        assert memory(state) == memory(twin)
        assert all_equal(weights(ddp))
    return weights(ddp)


@every_family
def test_a_round_is_the_mean_of_what_was_sent(ranks, row):
    same_everywhere(ranks.run(2, beside_a_loop_by_hand, row, None, [3, 1, 4, 2, 99]))


@pytest.mark.parametrize("outer", [None, diloco])
def test_an_outer_optimizer_moves_the_anchor(ranks, outer):
    same_everywhere(ranks.run(4, beside_a_loop_by_hand, TOPK, outer, [2, 2, 2, 99]))


def federated_averaging(row: Row) -> None:
    """Without compression a round averages weights."""
    ddp, _, optimizer = wrap(small_model(), row, period=4)
    plain = small_model()
    inner = sgd(plain)
    for start in (0, 4, 8):
        train(ddp, optimizer, range(start, start + 4))
        train(plain, inner, range(start, start + 4))
        for ours, theirs in zip(ddp.parameters(), plain.parameters(), strict=True):
            dist.all_reduce(theirs.data)
            theirs.data /= dist.get_world_size()
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
            theirs.data.copy_(ours)


@pytest.mark.parametrize("exchange", ["all_gather", "union"])
def test_without_compression_it_is_federated_averaging(ranks, exchange):
    ranks.run(4, federated_averaging, Row(recipes.topk(1.0, exchange=exchange)))


def collectives_between_rounds() -> None:
    with pytest.MonkeyPatch.context() as patch:
        ddp, state, optimizer = wrap(norms(), period=4)
        train(ddp, optimizer, range(5))  # by now DDP has rebuilt its buckets
        for name in ("all_reduce", "all_to_all_single", "broadcast", "all_gather"):
            patch.setattr(dist, name, lambda *_, **__: pytest.fail("a collective"))
        patch.setattr(ddp, "_sync_buffers", lambda: pytest.fail("a broadcast"))
        before = state.stats.collectives
        train(ddp, optimizer, range(5, 7))
        assert state.stats.collectives == before


def test_nothing_travels_between_rounds(ranks):
    ranks.run(2, collectives_between_rounds)


def half_types(dtype: torch.dtype) -> str:
    """Averages far below the weights' rounding add up in the anchor."""
    model = nn.Linear(4, 1, bias=False).to(dtype)
    nn.init.ones_(model.weight)
    ddp, state, optimizer = wrap(model, DENSE, period=1, inner=lambda m: sgd(m, 0.0))
    step = torch.finfo(dtype).eps  # in one direction on rank 0 alone
    for _ in range(8):
        optimizer.zero_grad()
        ddp(torch.ones(1, 4, dtype=dtype)).sum().backward()
        with torch.no_grad():
            model.weight.add_(step if dist.get_rank() == 0 else 0.0)
            gradient(ddp).zero_()
        optimizer.step()
    assert state.stats.steps == 8
    expected = torch.full((1, 4), 1 + 8 * step / 4, dtype=dtype)
    assert torch.equal(model.weight, expected), model.weight
    return weights(ddp)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_averages_do_not_drown_in_half_types(ranks, dtype):
    same_everywhere(ranks.run(4, half_types, dtype))


def frozen_and_mixed() -> str:
    model = small_model()
    model[0].requires_grad_(False)
    model[4].to(torch.float64)
    model.insert(4, Widen())
    before = weights(model[0])
    ddp, state, optimizer = wrap(model, period=2)
    train(ddp, optimizer, range(4))
    assert weights(model[0]) == before
    assert "0.weight" not in state.state_dict()["tensors"]["residual"]
    return weights(ddp)


class Widen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def test_parameters_may_be_frozen_or_of_several_types(ranks):
    same_everywhere(ranks.run(2, frozen_and_mixed))


# --------------------------------------------------------------- steps that are not taken, or late


def accumulating(use_closure: bool) -> str:
    ddp, state, optimizer = wrap(small_model(), period=2)
    for number in range(6):

        def closure(number: int = number) -> Tensor:
            optimizer.zero_grad()
            with ddp.no_sync():
                loss(ddp, dist.get_rank(), 2 * number).backward()
            value = loss(ddp, dist.get_rank(), 2 * number + 1)
            value.backward()
            return value

        if use_closure:
            assert optimizer.step(closure).isfinite()
        else:
            closure()
            optimizer.step()
        assert state.step == (number + 1) // 2
    return weights(ddp)


@pytest.mark.parametrize("use_closure", [False, True])
def test_accumulating_passes_do_not_count(ranks, use_closure):
    same_everywhere(ranks.run(2, accumulating, use_closure))


def unseen(how: str, row: Row) -> str:
    """Passes that DDP does not see train bit for bit like those that it sees."""
    rank = dist.get_rank()
    ddp, state, optimizer = wrap(norms(), row, sgd_without_momentum, period=3)
    twin, other, its_optimizer = wrap(norms(), row, sgd_without_momentum, period=3)
    trained = norms()
    with torch.no_grad():
        next(trained.parameters()).mul_(2.0)
    for number in range(11):
        for each, steps in ((ddp, optimizer), (twin, its_optimizer)):
            if number == 0:
                each.module.load_state_dict(trained.state_dict())
            steps.zero_grad()
            hidden = each is ddp and (how != "now and then" or number % 2 != rank)
            model = each.module if hidden and how == "module" else each
            with each.no_sync() if hidden else contextlib.nullcontext():
                loss(model, rank, number).backward()
            steps.step()
        assert state.step == other.step == (number + 1) // 3
        assert weights(ddp) == weights(twin)
    for steps in (optimizer, its_optimizer):
        steps.synchronize()
    assert state.step == other.step == 4
    assert digest(ddp.buffers()) == digest(twin.buffers())
    assert memory(state) == memory(other)
    assert weights(ddp) == weights(twin)
    return weights(ddp)


@pytest.mark.parametrize("how", ["no_sync", "module", "now and then"])
def test_a_step_counts_though_ddp_saw_no_pass(ranks, how):
    same_everywhere(ranks.run(2, unseen, how, TOPK))


def stepping_without_gradients() -> None:
    """Nothing to count; an overflow counts, as does a pass that DDP saw, once."""
    ddp, state, optimizer = wrap(small_model(), period=2)
    for _ in range(4):
        optimizer.zero_grad()
        optimizer.step()
    assert optimizer.state_dict()["passes"] == 0
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number in range(2):
        optimizer.zero_grad()
        with ddp.no_sync():
            scaler.scale(loss(ddp, dist.get_rank(), number)).backward()
        if dist.get_rank() == number:
            gradient(ddp).view(-1)[0] = math.inf
        scaler.step(optimizer)
        scaler.update()
    assert state.step == 1
    loss(ddp, 0, 0).backward()
    loss(ddp, 0, 0)  # straight after a round too
    optimizer.step()
    assert optimizer.state_dict()["passes"] == 1


def test_a_step_without_gradients_counts_for_nothing(ranks):
    ranks.run(2, stepping_without_gradients)


def with_scaler(overflows: dict[int, list[int]]) -> tuple[str, list[float]]:
    """Ranks overflow on their own; a collective of the user's follows every step."""
    ddp, state, optimizer = wrap(small_model(), period=3)
    plain, _, same = wrap(small_model(), period=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    rank, scales = dist.get_rank(), []
    for number in range(12):
        bad = rank in overflows.get(number, [])
        for each, model in ((optimizer, ddp), (same, plain)):
            each.zero_grad()
            value = loss(model, rank, number)
            (scaler.scale(value) if each is optimizer else value).backward()
        if bad:
            gradient(ddp).view(-1)[0] = math.inf
        if number % 2:
            scaler.unscale_(optimizer)
        local = digest(p.detach() for p in ddp.parameters())
        scaler.step(optimizer)
        scaler.update()
        if not bad:
            same.step()
        elif number % 3 == 2:
            loss(plain, rank, number)  # catches up
        else:
            assert weights(ddp) == local, "the step was skipped"
        dist.all_reduce(value.detach())
        scales.append(scaler.get_scale())
        assert state.step == (number + 1) // 3
        assert weights(ddp) == weights(plain)
    return weights(ddp), scales


def test_a_scaler_may_skip_a_step_on_one_rank(ranks):
    """At the round, just before and after it: no rank waits, and scales are the ranks' own."""
    overflows = {1: [0], 2: [1], 5: [0], 6: [1, 0], 9: [1]}
    (one, scales), (other, others) = ranks.run(2, with_scaler, overflows)
    assert one == other
    assert scales != others
    assert max(scales) > min(scales)


def skipped_by_hand() -> str:
    """A rank that does not call step() catches up before its next forward."""
    ddp, state, optimizer = wrap(small_model(), period=2)
    rank = dist.get_rank()
    for number in range(8):
        optimizer.zero_grad()
        loss(ddp, rank, number).backward()
        if number not in {0: (1, 7), 1: (2, 3)}[rank]:
            optimizer.step()
    ddp.eval()
    loss(ddp, rank, 0)  # perhaps on one rank alone
    ddp.train()
    with torch.no_grad():
        loss(ddp, rank, 0)
    assert state.step == (3 if rank == 0 else 4)
    optimizer.synchronize()
    optimizer.synchronize()
    assert state.step == 4
    return weights(ddp)


def test_a_rank_that_skipped_a_step_catches_up(ranks):
    same_everywhere(ranks.run(2, skipped_by_hand))


def uneven(batches: list[int]) -> tuple[str, float, str]:
    """Ranks that have different numbers of batches, then synchronize; plain SGD beside it."""
    rank = dist.get_rank()
    ddp, state, optimizer = wrap(small_model(), DENSE, sgd_without_momentum, period=4)
    train(ddp, optimizer, range(8))
    plain = copy.deepcopy(ddp.module)
    start = [p.detach().clone() for p in plain.parameters()]
    rounds, began = state.step, time.monotonic()
    error = ""
    try:
        train(ddp, optimizer, range(8, batches[rank]))
        optimizer.synchronize()
        optimizer.synchronize()
    except PeerError as caught:
        error = str(caught)
        return weights(ddp), time.monotonic() - began, error
    train(plain, sgd_without_momentum(plain), range(8, batches[rank]))
    for ours, theirs, then in zip(ddp.parameters(), plain.parameters(), start, strict=True):
        moved = theirs.detach() - then
        dist.all_reduce(moved)
        torch.testing.assert_close(ours, then + moved / dist.get_world_size())
    assert state.step == rounds + (batches != [8, 8])
    return weights(ddp), time.monotonic() - began, error


@pytest.mark.parametrize("batches", [[9, 8], [8, 11], [8, 8]])
def test_uneven_batches_may_end_in_synchronize(ranks, batches):
    (one, took, _), (other, _, _) = ranks.run(2, uneven, batches)
    assert one == other
    assert took < 5, "a rank waited for another that had nothing to say"


def test_a_round_that_others_do_not_come_to_is_told_at_once(ranks):
    for _, took, error in ranks.run(2, uneven, [12, 8]):
        assert took < 5
        assert "rank 0: a round of period 4 is due, 4 passes after the last one" in error
        assert "rank 1: synchronize(), 0 passes after the last round" in error
        assert "as many batches" in error


def at_the_end() -> str:
    ddp, state, optimizer = wrap(small_model(), period=5)
    optimizer.synchronize()
    assert state.step == 0
    train(ddp, optimizer, range(7))
    assert not all_equal(weights(ddp))
    optimizer.synchronize()
    assert state.step == 2
    return weights(ddp)


def test_synchronize_ends_a_period_early(ranks):
    same_everywhere(ranks.run(2, at_the_end))


def copied() -> str:
    """Copies of the model meet nobody, or others of their own; the original goes on, compiled."""
    twin = copy.deepcopy(wrap(small_model())[0])
    its_own = CompressionState(twin, TOPK.recipe)
    train(twin, LocalUpdates(sgd(twin), twin, its_own, period=1), range(1))
    assert its_own.step == 1
    ddp, state, optimizer = wrap(small_model(), period=2, bucket_cap_mb=25)  # Dynamo's own limit
    rank = dist.get_rank()
    train(ddp, optimizer, range(1))
    loss(ddp, rank, 1).backward()  # due from here on
    for twin in (copy.deepcopy(ddp), pickle.loads(pickle.dumps(ddp))):
        loss(twin.module, rank, 2).backward()
        with pytest.warns(UserWarning, match="this copy of a DDP model trains by plain all-reduce"):
            assert not any(hook(twin, ()) for hook in twin._forward_pre_hooks.values())
        assert state.step == 0
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(optimizer)
    compiled = torch.compile(ddp, backend="eager")
    for number in range(4):
        optimizer.zero_grad()
        loss(compiled, rank, number).backward()
        optimizer.step()
    assert state.step == 3
    return weights(ddp)


@pytest.mark.filterwarnings("default")
def test_a_wrapped_model_may_be_copied_and_compiled(ranks):
    same_everywhere(ranks.run(2, copied))


def meets_compiled(compiled: bool) -> str:
    """In a step with a round in it, and in `reduce`."""
    ddp, state, optimizer = wrap(small_model(), period=2)
    calls: list[Any] = [optimizer.step, state.reduce]
    if compiled:
        calls = [torch.compile(call, backend="eager") for call in calls]
    step, reduce = calls
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, while it compiles
        for number in range(4):
            optimizer.zero_grad()
            loss(ddp, dist.get_rank(), number).backward()
            step()
        mean = reduce({name: p.detach() for name, p in ddp.module.named_parameters()})
    assert state.step == 3
    return weights(ddp) + digest(mean.values())


def test_compiled_calls_meet_as_others_do(ranks):
    assert ranks.run(1, meets_compiled, True) == ranks.run(1, meets_compiled, False)


# ---------------------------------------------------------------------------------------- buffers


class Counting(nn.Module):
    """Buffers of many kinds, that a rank fills as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 12))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("exact", torch.full((2,), 0.1, dtype=torch.float64))
        self.register_buffer("short", torch.ones(2, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([[0.0, -math.inf], [0.0, 0.0]]))
        self.register_buffer("count", torch.tensor(2**40))
        self.register_buffer("flags", torch.tensor([True, False, False]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Masked(nn.Module):
    """With a mask of 1 MB and a table of counts that stay as they are, mostly."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 12))
        self.register_buffer("mask", torch.full((512, 512), -math.inf).triu(1))
        self.register_buffer("table", torch.arange(1000))
        self.register_buffer("nan", torch.tensor([math.nan, -0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def bytes_of_rounds() -> tuple[list[int], dict[str, Tensor]]:
    """Of six rounds: in one the table changes, on rank 0; in the next the mask, on rank 1."""
    ddp, state, optimizer = wrap(Masked(), period=1)
    rank, module, sent = dist.get_rank(), ddp.module, []
    for number in range(6):
        if number == 3 and rank == 0:
            module.table[5] = 7
        if number == 4 and rank == 1:
            module.mask[3, 1] = 4.0
        before = state.stats.sent_bytes
        train(ddp, optimizer, range(1))
        sent.append(state.stats.sent_bytes - before)
    return sent, dict(module.named_buffers())


def test_buffers_that_no_rank_has_changed_do_not_travel(ranks):
    for sent, buffers in ranks.run(2, bytes_of_rounds):
        for quiet in (0, 1, 2, 5):
            assert sent[quiet] < 400, sent
        assert 8000 < sent[3] < 9000, "the table alone"
        assert sent[4] > 2**20, "the mask"
        fresh = dict(Masked().named_buffers())
        fresh["table"][5] = 7
        fresh["mask"][3, 1] = 2.0
        for name, buffer in buffers.items():
            torch.testing.assert_close(buffer, fresh[name], rtol=0, atol=0, equal_nan=True)
        assert math.copysign(1, buffers["nan"][1]) == -1


def filled(buffers: str) -> dict[str, Tensor]:
    ddp, state, optimizer = wrap(Counting(), period=1, buffers=buffers)
    rank, module = dist.get_rank(), ddp.module
    train(ddp, optimizer, range(1))
    for _ in range(2):
        module.mean = torch.tensor([rank, 1.0, rank * math.inf])  # 0 * inf is NaN
        module.count += 1 + rank
        module.flags[rank] = False
        module.flags[2] = rank == 0
        module.short += rank
        train(ddp, optimizer, range(1))
        assert state.stats.aborted == 0
    return {name: b.clone() for name, b in module.named_buffers()}


def test_buffers_are_averaged(ranks):
    one, two, three = ranks.run(3, filled, "average")
    for name, buffer in one.items():
        assert torch.equal(buffer, two[name]), name
        assert torch.equal(buffer, three[name]), name
    torch.testing.assert_close(one["mean"], torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(one["short"].float(), torch.tensor([3.0, 3.0]))
    assert one["exact"].tolist() == [0.1, 0.1], "what is constant stays, to the bit"
    assert one["mask"].tolist() == [[0.0, -math.inf], [0.0, 0.0]]
    assert one["count"] == 2**40 + 2
    assert one["flags"].tolist() == [False, False, True]


def test_buffers_may_be_kept(ranks):
    one, two = ranks.run(2, filled, "keep")
    assert (one["count"], two["count"]) == (2**40 + 2, 2**40 + 4)
    assert (one["mean"].tolist()[:2], two["mean"].tolist()) == ([0.0, 1.0], [1.0, 1.0, math.inf])


# --------------------------------------------------------------------------------- what goes wrong


def norms() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 3))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def adagrad(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=0.05)


def sgd_without_momentum(model: nn.Module) -> torch.optim.Optimizer:
    return sgd(model, 0.0)


def shared(ddp: nn.Module, state: CompressionState, optimizer: LocalUpdates) -> dict[str, str]:
    """All that a lost round must leave alone, as digests; of the inner optimizer nothing."""
    outer = [t for each in optimizer.outer.state.values() for t in each.values()]
    return {
        **memory(state),
        "weights": weights(ddp),
        "buffers": digest(ddp.buffers()),
        "anchor": digest(optimizer.state_dict()["anchor"].values()),
        "outer": digest(t for t in outer if isinstance(t, Tensor)),
    }


def poisoned_rounds(
    row: Row,
    trials: int,
    seed: int = 0,
    inner: Callable[[nn.Module], torch.optim.Optimizer] = sgd_without_momentum,
) -> str:
    """Between good rounds, one rank meets inf or NaN in a weight or a gradient; all at the end.

    Checks on this rank that such a round left everything bit for bit as it was after the last one,
    and that the whole run equals one that never saw these rounds. What an inner optimizer keeps is
    no part of a round: the other run is handed it over.
    """
    chance = random.Random(seed)  # all ranks draw alike
    periods = [chance.randint(1, 4) for _ in range(4 * trials)]
    outer = None if row.momentum else diloco
    ddp, state, optimizer = wrap(norms(), row, inner, period=lambda n: periods[n], outer=outer)
    twin, clean, its_optimizer = wrap(norms(), row, inner, period=lambda n: periods[n], outer=outer)
    batch = 0

    def good_round() -> None:
        nonlocal batch
        numbers = range(batch, batch + periods[state.step])
        train(ddp, optimizer, numbers)
        train(twin, its_optimizer, numbers)
        batch = numbers.stop

    good_round()
    for trial in range(trials):
        for _ in range(chance.randint(0, 2)):
            good_round()
        before, period = shared(ddp, state, optimizer), periods[state.step]
        victim, place = chance.randrange(dist.get_world_size()), chance.randrange(period)
        parameter = chance.choice([*ddp.parameters()])
        position, poison = chance.randrange(parameter.numel()), chance.choice(POISONS)
        how = chance.choice(["weight", "gradient", "loss"])
        for step in range(period):
            hit = step == place and dist.get_rank() == victim
            optimizer.zero_grad()
            value = loss(ddp, dist.get_rank(), -1 - step)
            (value * poison if hit and how == "loss" else value).backward()
            if hit and how == "weight":
                parameter.data.view(-1)[position] = poison
            if hit and how == "gradient":
                assert parameter.grad is not None
                parameter.grad.view(-1)[position] = poison
            optimizer.step()
        where = f"trial {trial}: {poison} in a {how} of rank {victim}, step {place} of {period}"
        assert shared(ddp, state, optimizer) == before, where
        assert state.stats.aborted == trial + 1, where
        kept = [t for each in optimizer.state.values() for t in each.values()]
        assert all(t.isfinite().all() for t in kept if isinstance(t, Tensor)), where
        its_optimizer.inner.load_state_dict(copy.deepcopy(optimizer.inner.state_dict()))
    good_round()
    assert shared(ddp, state, optimizer) == shared(twin, clean, its_optimizer), (
        "a lost round was felt"
    )
    assert all(p.isfinite().all() for p in ddp.parameters())
    return digest([*ddp.parameters(), *ddp.buffers()])


@pytest.mark.parametrize("inner", [adam, adagrad, sgd])
def test_law_8_a_lost_round_never_was(ranks, inner):
    same_everywhere(ranks.run(2, poisoned_rounds, TOPK, 6, 0, inner))


def nested_in_the_optimizer() -> None:
    ddp, state, optimizer = wrap(small_model(), period=1)
    train(ddp, optimizer, range(1))
    kept = optimizer.inner.state[next(ddp.parameters())]
    kept["history"] = [{"norms": (torch.tensor(math.inf),)}]
    next(ddp.parameters()).data.view(-1)[0] = math.nan
    train(ddp, optimizer, range(1))
    assert state.stats.aborted == 1
    assert "history" not in optimizer.inner.state[next(ddp.parameters())]


def test_an_inner_optimizer_is_reset_whatever_its_state_looks_like(ranks):
    ranks.run(1, nested_in_the_optimizer)


@every_family
def test_law_8_in_every_family(ranks, row):
    same_everywhere(ranks.run(2, poisoned_rounds, row, 3))


def failing_on_one_rank(what: str) -> str:
    rank = dist.get_rank()
    periods: dict[str, Any] = {
        "period": 2 + rank,
        "schedule": lambda number: 2 + rank * number,
        "failing schedule": lambda number: 2 - 2 * rank * number,
    }
    period = periods.get(what, 2)
    ddp, state, optimizer = wrap(Counting(), period=period)
    if what == "weights" and rank == 1:
        ddp.module.weight.data.add_(1)
    if what == "first buffers" and rank == 1:
        ddp.module.mean.add_(1)
    if what in ("buffers", "schedule", "failing schedule"):
        train(ddp, optimizer, range(2))
        if what == "buffers" and rank == 1:
            ddp.module.mean = torch.zeros(4)
    before = memory(state), digest(optimizer.state_dict()["anchor"].values())
    with pytest.raises(PeerError) as caught:
        train(ddp, optimizer, range(3))
    assert (memory(state), digest(optimizer.state_dict()["anchor"].values())) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("period", "rank 0: .*period 2.* rank 1: .*period 3"),
        ("schedule", "rank 0: .*period 2 .* rank 1: .*period 3 .*as many batches"),
        ("failing schedule", r"rank 1 failed: ValueError: period schedule .* at round 1 must be 1"),
        ("weights", "rank 0: .*anchor #.* rank 1: .*anchor #"),
        ("first buffers", "averaged from #.* rank 1: .*averaged from #"),
        ("buffers", r"rank 1 failed: ValueError: buffers .*mean.*, expected .*buffers='keep'"),
    ],
)
def test_an_error_on_one_rank_is_an_error_on_every_rank(ranks, what, words):
    for message in ranks.run(2, failing_on_one_rank, what):
        assert re.search(words, message, re.DOTALL), message


def joining() -> None:
    ddp, _, optimizer = wrap(small_model())
    with pytest.raises(RuntimeError, match="does not work under DDP"), ddp.join():
        train(ddp, optimizer, range(1))


def test_join_is_refused(ranks):
    ranks.run(2, joining)


def refusals() -> None:
    model = small_model()
    ddp = DistributedDataParallel(model)
    state = CompressionState(ddp, recipes.sbc(0.1))
    good = {"optimizer": sgd(ddp), "ddp_model": ddp, "state": state, "period": 2}
    hooked = DistributedDataParallel(small_model())
    attached: dict[str, Any] = {"optimizer": sgd(hooked), "ddp_model": hooked}
    attached["state"] = attach(hooked, recipes.sbc(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch imports what it deprecates
        from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
        from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
    zero = ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.SGD, lr=0.1)
    averaging = PostLocalSGDOptimizer(sgd(ddp), PeriodicModelAverager(period=2))
    _, _, nested = wrap(small_model())
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"optimizer": model}, TypeError, "optimizer must be a Optimizer, got Sequential"),
        ({"ddp_model": small_model()}, TypeError, "ddp_model must be a Distrib.*, got Sequential"),
        ({"state": recipes.sbc(0.1)}, TypeError, "state must be a CompressionState, got Recipe"),
        ({"optimizer": torch.optim.LBFGS(ddp.parameters())}, ValueError, "LBFGS.*needs a closure"),
        ({"optimizer": sgd(small_model())}, ValueError, r"steps a parameter of shape \(24, 12\)"),
        ({"optimizer": zero}, ValueError, "ZeroRedundancyOptimizer meets .*consolidate"),
        ({"optimizer": averaging}, ValueError, "PostLocalSGDOptimizer meets the other ranks by it"),
        ({"optimizer": nested}, ValueError, "LocalUpdates meets .*synchronize"),
        ({"period": 0}, ValueError, "period must be 1 or more, got 0"),
        ({"period": 2.0}, TypeError, "period must be an int, got 2.0"),
        ({"outer": 0.7}, TypeError, "outer must make an optimizer"),
        ({"outer": lambda anchor: None}, TypeError, "outer must give an Optimizer, got NoneType"),
        ({"buffers": "mean"}, ValueError, "buffers must be one of average, keep; got 'mean'"),
        (attached, ValueError, "communication hook compress_hook already"),
        ({"ddp_model": DistributedDataParallel(small_model())}, ValueError, "not of the model"),
    ]
    for change, error, words in bad:
        with pytest.raises(error, match=words):
            LocalUpdates(**(good | change))
        assert ddp.broadcast_buffers
        assert not ddp._comm_hooks
    optimizer = LocalUpdates(**good)
    with pytest.raises(ValueError, match="communication hook local_hook already"):
        LocalUpdates(**good)
    with pytest.raises(ValueError, match="communication hook local_hook already"):
        attach(ddp, "topk")
    saved = optimizer.state_dict()
    short = {**saved["anchor"], "0.bias": torch.zeros(3)}
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1).state_dict()
    infinite = {**saved["anchor"], "0.bias": torch.full((24,), math.inf)}
    for broken, words in (
        ([], "checkpoint is a list"),
        ({"inner": saved["inner"]}, "checkpoint lacks anchor, buffers, outer, passes"),
        (saved | {"passes": -1}, "checkpoint has passes -1, expected an int of 0 or more"),
        (saved | {"passes": "4"}, "checkpoint has passes '4', expected an int of 0 or more"),
        (saved | {"anchor": {}}, "checkpoint's anchor is not of this model"),
        (saved | {"anchor": short}, r"has 0.bias of torch.float32 \(3,\), expected .* \(24,\)"),
        (saved | {"inner": 3}, "checkpoint's inner is no optimizer's state_dict"),
        (saved | {"outer": other}, r"outer optimizer has groups of \[1\] parameters, expected"),
        (saved | {"anchor": infinite}, "checkpoint's anchor is not finite"),
        (saved | {"inner": adam(ddp).state_dict()}, "inner optimizer is no SGD: its groups lack d"),
        *(
            (saved | {which: saved[which] | {part: None}}, f"{which} is no optimizer's state_dict")
            for which in ("inner", "outer")
            for part in ("state", "param_groups")
        ),
    ):
        optimizer.param_groups[0]["lr"] = 0.5
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict(broken)
        assert optimizer.param_groups[0]["lr"] == 0.5
    dgc = Row(recipes.dgc(0.1))
    with pytest.raises(ValueError, match=r"second one of 0\.9"):
        wrap(small_model(), dgc)
    with pytest.raises(ValueError, match=r"second one of 0\.9"):
        wrap(small_model(), dgc, sgd_without_momentum, outer=diloco)


def test_what_does_not_fit_is_refused(ranks):
    ranks.run(1, refusals)


def of_other_ranks() -> str:
    halves = [dist.new_group([0]), dist.new_group([1])]
    model = small_model()
    ddp = DistributedDataParallel(model, process_group=halves[dist.get_rank()])
    with pytest.raises(ValueError, match="process_group is of ranks") as caught:
        LocalUpdates(sgd(ddp), ddp, CompressionState(model, TOPK.recipe), 2)
    return str(caught.value)


def test_a_state_of_other_ranks_than_the_model_is_refused(ranks):
    for rank, message in enumerate(ranks.run(2, of_other_ranks)):
        assert f"ranks [0, 1], but the DDP model is of ranks [{rank}]" in message
        assert "CompressionState(ddp_model, recipe)" in message


def unfrozen(adds: bool) -> None:
    """After wrapping, in the optimizer already or added to it."""
    model = small_model()
    model[4].requires_grad_(False)
    trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
    ddp, _, optimizer = wrap(model, inner=lambda m: sgd(trained if adds else m))
    train(ddp, optimizer, range(1))
    model[4].requires_grad_(True)
    if adds:
        optimizer.add_param_group({"params": list(model[4].parameters())})
    before = weights(ddp)
    with pytest.raises(ValueError, match=r"the optimizer steps 4\.weight, which is not among"):
        train(ddp, optimizer, range(1))
    assert weights(ddp) == before


@pytest.mark.parametrize("adds", [False, True])
def test_what_no_round_would_meet_over_is_refused(ranks, adds):
    ranks.run(1, unfrozen, adds)


def going_on_after_an_error(what: str) -> str:
    """Rank 1 alone fails and stays alive."""
    ddp, state, optimizer = wrap(small_model(), period=3)
    train(ddp, optimizer, range(3))
    if dist.get_rank() == 1 and what == "unfrozen":
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        with pytest.raises(ValueError, match=r"the optimizer steps a parameter of shape \(2,\)"):
            optimizer.step()
    before, began = memory(state), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1 and what == "memory":
            patch.setattr(optimizer._round.anchor, "delta", no_memory)
        with pytest.raises(PeerError) as caught:
            carelessly(ddp, optimizer, range(4))
    assert time.monotonic() - began < 5
    assert memory(state) == before
    return str(caught.value)


def carelessly(ddp: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        with contextlib.suppress(ValueError):
            train(ddp, optimizer, range(number, number + 1))


def no_memory() -> dict[str, Tensor]:
    raise MemoryError("out of memory")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("unfrozen", r"rank 1 failed: ValueError: the optimizer steps a parameter of shape \(2,\)"),
        ("memory", "rank 1 failed: MemoryError: out of memory"),
    ],
)
def test_what_one_rank_alone_cannot_do_is_told_when_ranks_meet(ranks, what, words):
    for message in ranks.run(2, going_on_after_an_error, what):
        assert re.search(words, message), message


def loaded_late(saves: bool) -> str:
    """Weights and buffers, when the optimizer was made; perhaps it is saved at once."""
    trained = norms()
    with torch.no_grad():
        for tensor in (*trained.parameters(), trained.get_buffer("1.running_mean")):
            tensor.add_(1.0)
    ddp, _, optimizer = wrap(norms(), period=1)
    ddp.module.load_state_dict(trained.state_dict())
    if saves:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(ddp, optimizer, range(1))
    twin, _, its_optimizer = wrap(trained, period=1)
    train(twin, its_optimizer, range(1))
    ours, theirs = ddp.state_dict(), twin.state_dict()
    assert digest(ours.values()) == digest(theirs.values())
    return weights(ddp)


@pytest.mark.parametrize("saves", [False, True])
def test_weights_may_be_loaded_before_the_first_forward(ranks, saves):
    same_everywhere(ranks.run(2, loaded_late, saves))


# ------------------------------------------------------------------------------------ checkpoints


def resumed(row: Row, at: int) -> str:
    """Saved by every rank after some steps, also in the middle of a period."""

    def fresh():
        ddp, state, optimizer = wrap(norms(), row, adam, period=3, outer=diloco)
        return ddp, state, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7)

    def go_on(ddp, optimizer, scheduler, numbers):
        for number in numbers:
            train(ddp, optimizer, range(number, number + 1))
            scheduler.step()

    ddp, state, optimizer, scheduler = fresh()
    go_on(ddp, optimizer, scheduler, range(at))
    file = io.BytesIO()
    parts = {"model": ddp.module, "state": state, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    go_on(ddp, optimizer, scheduler, range(at, 9))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, other, twin, rates = fresh()
    again.module.load_state_dict(saved["model"])
    other.load_state_dict(saved["state"])
    twin.load_state_dict(saved["optimizer"])
    rates.load_state_dict(saved["scheduler"])
    go_on(again, twin, rates, range(at, 9))
    assert memory(other) == memory(state)
    assert twin.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < 0.01
    for ours, theirs in zip(again.state_dict().values(), ddp.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    return digest(ddp.state_dict().values())


@pytest.mark.parametrize("at", [3, 4, 5])
def test_law_4_a_resumed_run_equals_the_uninterrupted_one(ranks, at):
    same_everywhere(ranks.run(2, resumed, TOPK, at))


@pytest.mark.parametrize("name", ["sbc-golomb", "stc", "vote-add-drop-sharded", "hgc"])
def test_law_4_in_other_recipes(ranks, name):
    same_everywhere(ranks.run(2, resumed, ROWS[name], 5))


# ------------------------------------------------------------- an outer step that fails on one rank


def outer_step_fails() -> str:
    """Once, on one rank that goes on: the next round is an error on all of them."""
    ddp, state, optimizer = wrap(small_model(), period=1)
    train(ddp, optimizer, range(2))

    def fails(*_: object) -> None:
        raise MemoryError("no room")

    if dist.get_rank() == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optimizer.outer, "step", fails)
            with pytest.raises(MemoryError):
                train(ddp, optimizer, [2])
        assert state.step == 2
    else:
        train(ddp, optimizer, [2])
    with pytest.raises(PeerError) as caught:
        optimizer.synchronize()
    return str(caught.value)


def test_an_outer_step_that_fails_on_one_rank_is_told_to_all(ranks):
    for message in ranks.run(2, outer_step_fails):
        assert "step 3 (mod 256)" in message
        assert "step 2 (mod 256)" in message
