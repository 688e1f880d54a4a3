"""A gradient that was sent and is not applied: taken back, or told of."""

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import CompressionState, PeerError, attach, recipes
from ddp_compress.schedules import exponential_warmup
from tests.distributed.training import (
    MANY_BUCKETS,
    backward,
    digest,
    grads,
    loss,
    memory,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import ROWS, Row, every_family, every_recipe

SCARCE = {"flush_bytes": 300, "bucket_cap_mb": MANY_BUCKETS}


def whole(state: CompressionState) -> tuple[dict[str, str], object]:
    """Memory, zeros included, and what ranks have learned of each other."""
    saved = state.state_dict()
    return memory(state), (saved["step"], saved["checksum"])


def discards(row: Row) -> None:
    """Twice in a row and again later; all goes on as if those passes had never been."""
    ddp, state = wrap(small_model(), row, **SCARCE)
    clean, undisturbed = wrap(small_model(), row, **SCARCE)
    spent = 0
    for number in range(7):
        if number in (2, 3, 5):
            for wasted in range(2 if number == 3 else 1):
                before = whole(state)
                backward(ddp, 90 + wasted)
                assert whole(state) != before
                state.discard()
                assert whole(state) == before
                spent += 1
        backward(ddp, number)
        backward(clean, number)
        assert digest(grads(ddp)) == digest(grads(clean))
    assert whole(state) == whole(undisturbed)
    assert state.stats.discarded == spent == state.stats.steps - undisturbed.stats.steps


@every_recipe
def test_what_is_discarded_has_never_been(ranks, row):
    ranks.run(2, discards, row)


def discards_on_one_rank(row: Row) -> str:
    ddp, state = wrap(small_model(), row)
    train(ddp, range(3))
    if dist.get_rank() == 1:
        state.discard()
    with pytest.raises(PeerError) as caught:
        backward(ddp, 3)
    return str(caught.value)


@every_family
def test_to_discard_on_one_rank_alone_is_an_error_on_every_rank(ranks, row):
    for message in ranks.run(2, discards_on_one_rank, row):
        assert "rank 0 has density" in message
        assert "step 3 (mod 256)" in message
        assert "step 2 (mod 256)" in message


def when_to_discard() -> None:
    ddp, state = wrap(small_model(), ROWS["topk"])
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="no pass to discard"):
        state.discard()
    backward(ddp, 0)
    state.discard()
    with pytest.raises(RuntimeError, match="no pass to discard"):
        state.discard()
    backward(ddp, 0)
    optimizer.step()
    with pytest.raises(RuntimeError, match="SGD has applied gradients of this pass already"):
        state.discard()
    before = whole(state)
    ddp.zero_grad()
    (loss(ddp, dist.get_rank(), 1) * float("nan")).backward()
    state.discard()  # an aborted pass has changed nothing
    assert whole(state) == before
    state.load_state_dict(state.state_dict())
    with pytest.raises(RuntimeError, match="no pass to discard"):
        state.discard()
    backward(ddp, 1)
    state.settle()
    with pytest.raises(RuntimeError, match="no pass to discard"):
        state.discard()


def test_there_must_be_something_to_discard(ranks):
    ranks.run(2, when_to_discard)


# --------------------------------------------------------------- cleared, and nobody has said so


def told(act: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(each.message) for each in caught]


class Loop:
    """A discriminator that a generator's loss runs through: its gradients of that are not used."""

    def __init__(self, row: Row, in_place: bool = False, **options: object) -> None:
        self.ddp, self.state = wrap(small_model(), row, **options)
        momentum = 0.0 if row.momentum else 0.9
        self.optimizer = torch.optim.SGD(self.ddp.parameters(), lr=0.01, momentum=momentum)
        self.to_none = not in_place

    def run(self, waste: Callable[[int], object], steps: int = 6) -> None:
        for number in range(steps):
            self.optimizer.zero_grad(self.to_none)
            loss(self.ddp, dist.get_rank(), number).backward()
            self.optimizer.step()
            waste(number)

    def backward(self, number: int) -> None:
        loss(self.ddp, dist.get_rank(), 50 + number).backward()

    def discarded(self, number: int) -> None:
        self.optimizer.zero_grad(self.to_none)
        self.backward(number)
        self.state.discard()

    def unsaid(self, number: int) -> None:
        self.optimizer.zero_grad(self.to_none)
        self.backward(number)

    def unsynchronized(self, number: int) -> None:
        with self.ddp.no_sync():
            self.backward(number)

    def bare(self, number: int) -> None:
        loss(self.ddp.module, dist.get_rank(), 50 + number).backward()


def wasting(row: Row, in_place: bool, options: dict[str, bool]) -> None:
    """Whichever cure is taken, weights are bit for bit those of a loop that wastes nothing."""
    expected = Loop(row, in_place, **options)
    assert told(lambda: expected.run(lambda number: None)) == []
    for cure in ("discarded", "unsynchronized", "bare"):
        loop = Loop(row, in_place, **options)
        assert told(partial(loop.run, getattr(loop, cure))) == []
        assert weights(loop.ddp) == weights(expected.ddp), cure
    loop = Loop(row, in_place, **options)
    (message,) = told(lambda: loop.run(loop.unsaid))
    for word in ("0.weight", "and 5 more", "state.discard()", ".module", "no_sync"):
        assert word in message


@pytest.mark.parametrize("in_place", [False, True])
@every_family
def test_gradients_cleared_unused_are_told_of_once(ranks, row, in_place):
    ranks.run(2, wasting, row, in_place, {})


@pytest.mark.parametrize("option", ["gradient_as_bucket_view", "find_unused_parameters"])
def test_gradients_cleared_unused_are_told_of_in_other_modes(ranks, option):
    ranks.run(2, wasting, ROWS["topk"], False, {option: True})


def cleared_before_its_step(some: bool) -> list[str]:
    """Zeroed as invalid, or cancelled for the last layer as DINO does; the step is taken anyway."""
    ddp, _ = wrap(small_model(), ROWS["topk"])
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)

    def run() -> None:
        for number in range(4):
            backward(ddp, number)
            if number == 2:
                for p in list(ddp.parameters())[-1 if some else 0 :]:
                    p.grad = None
            optimizer.step()

    return told(run)


@pytest.mark.parametrize("some", [False, True])
def test_gradients_cleared_right_before_the_step_are_told_of(ranks, some):
    for (message,) in ranks.run(2, cleared_before_its_step, some):
        assert ("gradients of 4.bias were sent" if some else "and 5 more") in message


class BothInOne(nn.Module):
    """A generator and its discriminator in one DDP model, with an optimizer each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.discriminator = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, generate: bool) -> torch.Tensor:
        return self.discriminator(self.generator(x) if generate else x).square().mean()


def both_in_one() -> list[str]:
    ddp, state = wrap(BothInOne(), ROWS["topk"], find_unused_parameters=True)
    parts = (ddp.module.discriminator, ddp.module.generator)
    optimizers = [torch.optim.Adam(part.parameters()) for part in parts]

    def run() -> None:
        for _ in range(3):
            for generate, optimizer in enumerate(optimizers):
                optimizer.zero_grad()
                ddp(torch.randn(8, 4), bool(generate)).backward()
                optimizer.step()
                if generate:
                    with pytest.raises(RuntimeError, match="give each a DDP model"):
                        state.discard()

    return told(run)


def test_gradients_cleared_unused_are_told_of_by_parameter(ranks):
    for (message,) in ranks.run(2, both_in_one):
        assert "gradients of discriminator.weight, discriminator.bias were sent, and" in message


def never_stepped_by_torch() -> None:
    """Steps by hand are not seen: nothing is known, so nothing is said."""
    for name in ("topk", "dgc"):
        ddp, _ = wrap(small_model(), ROWS[name])
        for number in range(4):
            train(ddp, [number])
            with ddp.no_sync():
                backward(ddp, 50 + number)


def part_in_an_optimizer() -> None:
    """What no optimizer steps is always owed, and yet cleared."""
    ddp, _ = wrap(small_model(), ROWS["dgc"])
    optimizer = torch.optim.SGD(list(ddp.parameters())[:-1], lr=0.01)
    for number in range(4):
        backward(ddp, number)
        optimizer.step()
        ddp.zero_grad()
        with ddp.no_sync():
            backward(ddp, 50 + number)


def joined() -> None:
    """Ranks without input send what they still owe: nothing of it is for their optimizer."""
    ddp, _ = wrap(small_model(), ROWS["topk"])
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for epoch in range(2):
        with ddp.join():
            for number in range(3 + 2 * dist.get_rank()):
                optimizer.zero_grad()
                loss(ddp, dist.get_rank(), 10 * epoch + number).backward()
                optimizer.step()


class WithTeacher(nn.Module):
    """A frozen part is refreshed as training goes on; others of its dtypes cannot be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = small_model(), small_model().requires_grad_(False)
        self.phases = nn.Parameter(torch.zeros(2, dtype=torch.complex64), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.student(x) + self.teacher(x)


def with_a_teacher() -> None:
    ddp, _ = wrap(WithTeacher(), ROWS["topk"])
    mean = copy.deepcopy(ddp).requires_grad_(False)  # in training mode, but nothing of it trains
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for number in range(3):
        backward(ddp, number)
        optimizer.step()
        student = ddp.module.student.state_dict()
        ddp.module.load_state_dict({f"teacher.{n}": t for n, t in student.items()}, strict=False)
        mean(torch.ones(1, 12))


def weights_before_the_first_pass() -> None:
    ddp, _ = wrap(small_model(), ROWS["topk"])
    ddp.module.load_state_dict({n: 2 * t for n, t in ddp.module.state_dict().items()})
    train(ddp, range(2))


def lbfgs() -> None:
    """Every pass of a closure is used, though it does not end in a step."""
    ddp, _ = wrap(small_model(), ROWS["topk"])
    optimizer = torch.optim.LBFGS(ddp.parameters(), max_iter=4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(ddp, dist.get_rank(), 0)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)


def scaled() -> None:
    """A scaler that skips steps: their gradients were not finite, so nothing was sent."""
    ddp, state = wrap(small_model(), ROWS["topk"])
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    state.use_scaler(scaler)
    for number in range(6):
        optimizer.zero_grad()
        scaler.scale(8 * loss(ddp, dist.get_rank(), number)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert 0 < state.stats.aborted < 6


IN_ORDER = [
    *(never_stepped_by_torch, part_in_an_optimizer, joined, with_a_teacher, lbfgs, scaled),
    weights_before_the_first_pass,
]


@pytest.mark.parametrize("loop", IN_ORDER)
def test_what_is_in_order_is_not_told_of(ranks, loop):
    ranks.run(2, loop)  # where every warning is an error


# ------------------------------------------------------------------------ accumulated upon others


def accumulates(row: Row, passes: Callable[[int], int], synced: bool) -> tuple[str, str]:
    """The error, if any, of training in which steps have several passes; and the weights."""
    ddp, _ = wrap(small_model(), row)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    try:
        for step in range(5):
            optimizer.zero_grad()
            for number in range(passes(step)):
                last = number == passes(step) - 1
                with nullcontext() if synced or last else ddp.no_sync():
                    loss(ddp, dist.get_rank(), 10 * step + number).backward()
            optimizer.step()
    except PeerError as error:
        return str(error), weights(ddp)
    return "", weights(ddp)


MOMENTUM = {name: row for name, row in ROWS.items() if "momentum" in row.recipe.memory.tensors}


def changing(step: int) -> int:
    return (1, 2, 4, 1, 3)[step]


def one(step: int) -> int:
    return 1


@pytest.mark.parametrize("row", MOMENTUM.values(), ids=MOMENTUM)
def test_a_momentum_takes_no_gradient_twice(ranks, row):
    for error, _ in ranks.run(2, accumulates, row, changing, True):
        assert "are accumulated upon averaged ones" in error
        assert "4.weight" in error
        assert "with ddp_model.no_sync()" in error
    for passes in (one, changing):
        found = ranks.run(2, accumulates, row, passes, False)
        assert found[0] == found[1]
        assert not found[0][0]


def test_without_a_momentum_gradients_may_be_accumulated_upon_others(ranks):
    """All that came was sent or kept, once."""
    for error, _ in ranks.run(2, accumulates, ROWS["topk"], changing, True):
        assert not error


def in_a_closure(passes: int) -> str:
    """As Lightning steps; the error, if any."""
    ddp, state = wrap(small_model(), ROWS["dgc"])
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        for number in range(passes):
            value = loss(ddp, dist.get_rank(), number)
            value.backward()
        return value

    try:
        for _ in range(3):
            optimizer.step(closure)
    except PeerError as error:
        return str(error)
    with pytest.raises(RuntimeError, match="SGD has applied gradients of this pass already"):
        state.discard()
    return ""


def test_a_closure_is_held_to_the_same(ranks):
    assert ranks.run(2, in_a_closure, 1) == ["", ""]
    for error in ranks.run(2, in_a_closure, 2):
        assert "are accumulated upon averaged ones" in error


def not_applied_yet(row: Row) -> str:
    """Gradients retained through a pass that is cleared in place are no sum."""
    ddp, state = wrap(small_model(), row)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for number in range(4):
        output = loss(ddp, dist.get_rank(), number)
        optimizer.zero_grad(set_to_none=number % 2 == 0)  # between forward and backward
        output.backward()
        optimizer.step()
    assert state.stats.steps == 4
    return weights(ddp)


def test_gradients_may_be_cleared_between_forward_and_backward(ranks):
    assert len(set(ranks.run(2, not_applied_yet, ROWS["dgc-golomb"]))) == 1


# ---------------------------------------------------------------- weights restored without memory


def restores(with_memory: bool, averaged: bool) -> list[str]:
    """As a search for a learning rate does; or weights are others for an evaluation alone."""
    ddp, state = wrap(small_model(), ROWS["topk"])
    saved = {name: t.clone() for name, t in ddp.state_dict().items()}
    remembered = state.state_dict()
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)

    def run() -> None:
        for number in range(6):
            if number == 3:
                if averaged:
                    trained = {name: t.clone() for name, t in ddp.module.state_dict().items()}
                    ddp.load_state_dict(saved)
                    ddp.module.load_state_dict(trained)
                else:
                    ddp.load_state_dict(saved)
                if with_memory:
                    state.load_state_dict(remembered)
            backward(ddp, number)
            optimizer.step()

    return told(run)


@pytest.mark.parametrize(
    ("with_memory", "averaged", "told_of"),
    [(False, False, True), (True, False, False), (False, True, False)],
)
def test_weights_restored_without_memory_are_told_of(ranks, with_memory, averaged, told_of):
    for messages in ranks.run(2, restores, with_memory, averaged):
        assert len(messages) == told_of
        assert all("the model's weights were loaded, but not the memory" in m for m in messages)


def finds_a_learning_rate() -> None:
    """With state, model and optimizer restored, it is as if the search had never been."""

    def make() -> tuple[DistributedDataParallel, CompressionState, torch.optim.Optimizer]:
        ddp, state = wrap(
            small_model(), Row(recipes.sbc(exponential_warmup(0.05, steps=4, start=0.25)))
        )
        return ddp, state, torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            backward(model, number)
            optimizer.step()

    ddp, state, optimizer = make()
    steps(ddp, optimizer, range(3))
    parts: list[Any] = [ddp, state, optimizer]
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    searching = torch.optim.SGD(ddp.parameters(), lr=10.0)
    steps(ddp, searching, range(20, 24))
    backward(ddp, 24)  # of a loss that diverges: no step is taken
    for part, then in zip(parts, saved, strict=True):
        part.load_state_dict(then)
    steps(ddp, optimizer, range(3, 6))
    expected, _, optimizer = make()
    steps(expected, optimizer, range(6))
    assert weights(ddp) == weights(expected)


def test_a_search_for_a_learning_rate_leaves_no_trace(ranks):
    ranks.run(2, finds_a_learning_rate)


# ------------------------------------------------------------------------------------------- SAM


def sharpness_aware(compressed: bool) -> list[torch.Tensor]:
    """The first pass says in which direction to look, and is not applied."""
    ddp = DistributedDataParallel(small_model())
    state = attach(ddp, "topk", density=1.0) if compressed else None
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    for number in range(4):
        loss(ddp, dist.get_rank(), number).backward()
        with torch.no_grad():
            moved = [0.05 * grad / grad.norm() for grad in grads(ddp)]
            for p, by in zip(ddp.parameters(), moved, strict=True):
                p.add_(by)
        optimizer.zero_grad()
        if state is not None:
            state.discard()
        loss(ddp, dist.get_rank(), number).backward()
        with torch.no_grad():
            for p, by in zip(ddp.parameters(), moved, strict=True):
                p.sub_(by)
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in ddp.parameters()]


def test_sharpness_aware_minimization_trains_as_with_dense_gradients(ranks):
    for ours, dense in zip(
        ranks.run(2, sharpness_aware, True), ranks.run(2, sharpness_aware, False), strict=True
    ):
        torch.testing.assert_close(ours, dense)
