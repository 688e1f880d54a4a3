"""What goes wrong on one rank is an error on every rank, and costs nothing of the residual."""

import gc
import os
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import CompressionState, PeerError, compress_hook, recipes
from ddp_compress.exchange.fused import FusedLists
from ddp_compress.memory import Residual
from ddp_compress.message.arena import Arena
from ddp_compress.message.message import Message
from ddp_compress.schedules import Schedule
from ddp_compress.select import TopK
from ddp_compress.transport import channel
from ddp_compress.transport.comm import Comm
from tests.distributed.test_ddp_modes import convolutions
from tests.distributed.training import (
    MANY_BUCKETS,
    backward,
    memory,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import ROWS, Row, every_family, every_recipe

GOOD_STEPS = 5


def unlucky() -> bool:
    """One rank in the middle, so that neither the first nor the last hides something."""
    return dist.get_rank() == 1


def failed_step(ddp, state: CompressionState, number: int) -> str:
    """The error of a step that must fail and must leave the state alone."""
    before = memory(state)
    with pytest.raises((PeerError, ValueError)) as caught:
        backward(ddp, number)
    assert memory(state) == before
    return str(caught.value)


def still_in_step() -> None:
    """The ranks can still talk: no collective is left without its peers."""
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, "here")
    assert every == ["here"] * dist.get_world_size()


# ----------------------------------------------------------------------------- ranks that differ


def with_recipes(mine: Row, others: Row) -> str:
    ddp, state = wrap(small_model(), mine if unlucky() else others)
    message = failed_step(ddp, state, 0)
    still_in_step()
    return message


@pytest.mark.parametrize(
    ("mine", "others", "words"),
    [
        (Row(recipes.sbc(0.1)), Row(recipes.topk(0.1)), ["recipe topk", "recipe sbc"]),
        (Row(recipes.sbc(0.1)), Row(recipes.sbc(0.2)), ["density 0.2", "density 0.1"]),
        (Row(recipes.dgc(0.1, 0.5)), Row(recipes.dgc(0.1, 0.9)), ["momentum=0.9", "momentum=0.5"]),
        (
            Row(recipes.topk(0.1, value_dtype=torch.float16)),
            Row(recipes.topk(0.1)),
            ["float32", "float16"],
        ),
        (
            Row(recipes.sbc(0.1, "model")),
            Row(recipes.sbc(0.1, "tensor")),
            ["scope=tensor", "scope=model"],
        ),
        (
            Row(recipes.sbc(0.1, codec="raw")),
            Row(recipes.sbc(0.1, codec="golomb")),
            ["Golomb()", "Raw()"],
        ),
        (
            Row(recipes.sbc(0.1), min_numel=7),
            Row(recipes.sbc(0.1)),
            ["min_numel 0", "min_numel 7"],
        ),
        (Row(recipes.hgc(0.1, seed=2)), Row(recipes.hgc(0.1)), ["seed=0", "seed=2"]),
        (
            Row(recipes.majority_vote(0.1, seed=2)),
            Row(recipes.majority_vote(0.1)),
            ["seed=0, count", "seed=2, count"],
        ),
        (
            Row(recipes.majority_vote(0.1, "random")),
            Row(recipes.majority_vote(0.1)),
            ["random=False", "random=True"],
        ),
        (
            Row(recipes.majority_vote(0.1, "add_drop", 0.3)),
            Row(recipes.majority_vote(0.1, "add_drop")),
            ["change=0.1", "change=0.3"],
        ),
        (Row(recipes.hgc(0.1, bits=2)), Row(recipes.hgc(0.1)), ["bits=1", "bits=2"]),
        (Row(recipes.hgc(0.1)), Row(recipes.hgc(0.1, predictor=0.9)), ["=0.9)", "=None)"]),
        (Row(recipes.sign(64)), Row(recipes.sign(32)), ["block=32", "block=64"]),
        (
            Row(recipes.topk(0.1, exchange="union")),
            Row(recipes.topk(0.1)),
            ["AllGather()", "Union()"],
        ),
    ],
    ids=["recipe", "density", "momentum", "value_dtype", "scope", "codec", "min_numel", "seed",
         "votes' seed", "variant", "change", "bits", "predictor", "block", "exchange"],
)  # fmt: skip
def test_a_rank_that_compresses_otherwise_is_named_on_every_rank(ranks, mine, others, words):
    for message in ranks.run(3, with_recipes, mine, others):
        assert "rank 1 differs from rank 0" in message
        first, second = message.split("rank 1: ")
        assert words[0] in first
        assert words[1] in second


def with_another_model() -> str:
    state = CompressionState(torch.nn.Linear(5 if unlucky() else 4, 1), ROWS["sbc"].recipe)
    with pytest.raises(PeerError) as caught:
        state.reduce({"bias": torch.ones(1)})
    still_in_step()
    return str(caught.value)


def test_a_rank_with_another_model_is_named(ranks):
    for message in ranks.run(2, with_another_model):
        assert "rank 1 differs from rank 0" in message
        assert "parameters #" in message


def with_flush_bytes() -> str:
    ddp, state = wrap(small_model(), ROWS["sbc"], flush_bytes=1 if unlucky() else 1000)
    return failed_step(ddp, state, 0)


def test_a_rank_that_flushes_otherwise_is_named(ranks):
    for message in ranks.run(2, with_flush_bytes):
        assert "flush_bytes 1000" in message
        assert "flush_bytes 1," in message


class Until:
    """A schedule that goes astray at step 5 on one rank; steps 5 to 15 are not announced."""

    def __init__(self, astray: float) -> None:
        self.astray = astray

    def __call__(self, step: int) -> float:
        return self.astray if step == GOOD_STEPS and unlucky() else 0.1


def with_schedule(make: Callable[[Schedule], Row], astray: float, flush_bytes: int) -> str:
    """The error; afterwards all goes on as if that step had not been."""
    options = {"flush_bytes": flush_bytes, "bucket_cap_mb": MANY_BUCKETS}
    density = Until(astray)
    ddp, state = wrap(small_model(), make(density), **options)
    train(ddp, range(GOOD_STEPS))
    message = failed_step(ddp, state, 0)
    still_in_step()

    density.astray = 0.1
    again, resumed = wrap(small_model(), make(0.1), **options)
    again.module.load_state_dict(ddp.module.state_dict())
    resumed.load_state_dict(state.state_dict())
    clean, _ = wrap(small_model(), make(0.1), **options)
    train(clean, range(GOOD_STEPS + 3))
    train(again, range(GOOD_STEPS, GOOD_STEPS + 3))
    assert weights(again) == weights(clean)
    return message


@pytest.mark.parametrize("flush_bytes", [1, 300, 256 * 1024])
def test_a_schedule_that_diverges_later_is_named_on_every_rank(ranks, flush_bytes):
    for message in ranks.run(2, with_schedule, topk_row, 0.2, flush_bytes):
        assert "rank 0 has density 0.1" in message
        assert "rank 1 has density 0.2" in message


@pytest.mark.parametrize(
    ("astray", "flush_bytes"),
    [(float("nan"), 1), (float("nan"), 300), (float("nan"), 256 * 1024), (0.0, 300), (1.5, 300)],
)
def test_a_bad_density_on_one_rank_is_an_error_on_every_rank(ranks, astray, flush_bytes):
    """Some ranks have sent messages by then that the unlucky one has not."""
    for message in ranks.run(2, with_schedule, topk_row, astray, flush_bytes):
        assert "rank 1 failed: ValueError: density schedule" in message
        assert f"at step 5 must lie in (0, 1], got {astray}" in message


def topk_row(density: float | Schedule) -> Row:
    return Row(recipes.topk(density, "tensor"))


def nan_schedule() -> str:
    ddp, state = wrap(small_model(), Row(recipes.sbc(lambda step: float("nan"))))
    return failed_step(ddp, state, 0)


def test_a_nan_schedule_on_all_ranks_is_refused(ranks):
    for message in ranks.run(2, nan_schedule):
        assert "at step 0 must lie in (0, 1], got nan" in message


# ----------------------------------------------------------------------------- a rank that fails


def with_an_exception(row: Row, flush_bytes: int, call: int) -> str:
    """Selection raises on one rank, at its first message or a later one."""
    ddp, state = wrap(small_model(), row, flush_bytes=flush_bytes, bucket_cap_mb=MANY_BUCKETS)
    train(ddp, range(3))
    real, calls = TopK._take, []

    def failing(self, *args):
        calls.append(1)
        if unlucky() and len(calls) == call:
            raise MemoryError("no room for the positions")
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TopK, "_take", failing)
        message = failed_step(ddp, state, 3)
    still_in_step()
    return message


@pytest.mark.parametrize(("flush_bytes", "call"), [(256 * 1024, 1), (1, 1), (1, 3)])
@pytest.mark.parametrize(
    "row", [ROWS["topk"], ROWS["dgc"], ROWS["sbc-golomb"]], ids=["topk", "dgc", "sbc-golomb"]
)
def test_an_exception_on_one_rank_names_it_on_every_rank(ranks, row, flush_bytes, call):
    for message in ranks.run(4, with_an_exception, row, flush_bytes, call):
        assert message == "rank 1 failed: MemoryError: no room for the positions"


def failing_backward() -> None:
    """User code raises on every rank when some messages are out; a new DDP takes the state on."""
    # With find_unused_parameters the new DDP has the buckets of the old one from the start.
    options = {"bucket_cap_mb": MANY_BUCKETS, "find_unused_parameters": True}
    ddp, state = wrap(small_model(), ROWS["topk"], flush_bytes=1, **options)
    clean, _ = wrap(small_model(), ROWS["topk"], flush_bytes=1, **options)
    for model in (ddp, clean):
        train(model, range(3))
    before = memory(state)

    def stop(grad: Tensor) -> None:
        raise KeyError("a bug of the user's")

    handle = next(ddp.parameters()).register_hook(stop)
    with pytest.raises(KeyError, match="a bug of the user's"):
        backward(ddp, 3)
    handle.remove()
    assert memory(state) == before

    module = ddp.module
    del ddp  # it has hooks of its own on the parameters
    gc.collect()
    again = DistributedDataParallel(module, **options)
    again.register_comm_hook(state, compress_hook)
    for model in (again, clean):
        train(model, range(3, 6))
    assert weights(again) == weights(clean)


def test_a_backward_that_raises_half_way_costs_nothing(ranks):
    ranks.run(2, failing_backward)


def dies() -> None:
    ddp, _ = wrap(small_model(), ROWS["sbc"], flush_bytes=1, bucket_cap_mb=MANY_BUCKETS)
    train(ddp, range(3))
    calls = []
    real = TopK._take

    def deadly(self, *args):
        calls.append(1)
        if unlucky() and len(calls) == 2:
            os._exit(3)
        return real(self, *args)

    TopK._take = deadly  # type: ignore[method-assign]
    backward(ddp, 3)


def test_the_death_of_a_rank_ends_the_others(ranks):
    """Within the timeout of the process group, whose words they get as well."""
    start = time.monotonic()
    outcomes = ranks.outcomes(3, dies, collective_timeout=5.0, limit=40)
    assert [type(o.error) for o in outcomes] == [PeerError, ChildProcessError, PeerError]
    assert time.monotonic() - start < 40


# ----------------------------------------------------- errors where a rank can hardly tell of them

SOON = 5.0  # seconds; the others would wait for the group's timeout of 20


def soon(act: Callable[[], object], error: type[Exception] | None = None) -> str:
    """The error of something that must fail at once."""
    start = time.monotonic()
    with pytest.raises(error or PeerError) as caught:
        act()
    assert time.monotonic() - start < SOON
    return str(caught.value)


def converted_on_one_rank(row: Row, flush_bytes: int) -> str:
    """It still takes part in as many messages as the others."""
    ddp, state = wrap(convolutions(), row, flush_bytes=flush_bytes, bucket_cap_mb=MANY_BUCKETS)
    train(ddp, range(3))
    before = memory(state)
    if unlucky():
        ddp.module.to(memory_format=torch.channels_last)
    message = soon(lambda: backward(ddp, 3))
    assert memory(state) == before
    still_in_step()
    return message


@pytest.mark.parametrize("flush_bytes", [1, 256 * 1024])
@pytest.mark.parametrize(
    "row", [ROWS["topk"], ROWS["vote-sharded"], ROWS["stc"]], ids=["topk", "vote", "stc"]
)
def test_a_model_converted_on_one_rank_is_named_on_every_rank(ranks, row, flush_bytes):
    for message in ranks.run(2, converted_on_one_rank, row, flush_bytes):
        assert "rank 1 failed: ValueError: " in message
        assert "Convert the model" in message


def closed_on_one_rank(row: Row) -> str:
    ddp, state = wrap(small_model(), row)
    train(ddp, range(3))
    before = memory(state)
    if unlucky():
        state.close()
    message = soon(lambda: backward(ddp, 3), RuntimeError)
    assert memory(state) == before
    still_in_step()
    return message


@every_family
def test_a_state_closed_on_one_rank_ends_the_step_of_every_rank(ranks, row):
    first, second = ranks.run(2, closed_on_one_rank, row)
    assert "a rank does not answer: it has ended, has closed its state" in first
    assert "this state was closed" in second


def before_the_first_step(fault: str) -> str:
    """Ranks have not even met."""
    momentum = Until(0.9)
    row = Row(recipes.dgc(0.1, momentum)) if fault == "schedule" else ROWS["topk"]
    ddp, state = wrap(small_model(), row)
    if unlucky() and fault == "closed":
        state.close()
    if unlucky() and fault == "schedule":
        momentum.__class__ = Failing
    message = soon(lambda: backward(ddp, 0))
    still_in_step()
    return message


class Failing(Until):
    """A schedule with a fault."""

    def __call__(self, step: int) -> float:
        raise ValueError("no such epoch")


@pytest.mark.parametrize(
    ("fault", "words"), [("closed", "this state was closed"), ("schedule", "no such epoch")]
)
def test_an_error_before_ranks_have_met_is_told_to_all(ranks, fault, words):
    for message in ranks.run(2, before_the_first_step, fault):
        assert words in message.split("rank 1: ")[1]


def out_of_memory(row: Row, where: str) -> str:
    """On one rank there is none for what must be sent; all the others hear of it at once."""
    ddp, state = wrap(small_model(), row)
    train(ddp, range(3))
    before = memory(state)
    place, name = {
        "buffer": (Comm, "_room"),
        "frame": (channel, "padded"),
        "header": (channel, "seal"),
        "reserve": (Arena, "reserve"),
    }[where]

    def fails(*_: object) -> None:
        raise MemoryError("no room")

    with pytest.MonkeyPatch.context() as patch:
        if unlucky():
            patch.setattr(place, name, fails)
        message = soon(lambda: backward(ddp, 3), Exception)
    assert memory(state) == before
    still_in_step()
    return message


@pytest.mark.parametrize("where", ["buffer", "frame", "header", "reserve"])
@pytest.mark.parametrize("row", [ROWS["topk"], ROWS["vote-sharded"]], ids=["topk", "vote"])
def test_no_rank_waits_for_one_without_memory(ranks, row, where):
    first, second = ranks.run(2, out_of_memory, row, where)
    assert ("MemoryError: no room" if where == "reserve" else "a rank does not answer") in first
    assert "no room" in second


def commits_on_one_rank(where: str) -> str:
    """What fails where no more is sent: that rank is a step behind, as the next one tells."""
    state = CompressionState(small_model(), ROWS["topk"].recipe)
    given = {name: torch.randn(p.shape) for name, p in small_model().named_parameters()}
    state.reduce(given)
    before = memory(state)
    place, name = {"decode": (FusedLists, "decode"), "commit": (Residual, "release")}[where]

    def fails(*_: object) -> None:
        raise MemoryError("no room")

    if unlucky():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, fails)
            soon(lambda: state.reduce(given), MemoryError)
        assert memory(state) == before
    else:
        state.reduce(given)
    message = soon(lambda: state.reduce(given))
    still_in_step()
    return message


@pytest.mark.parametrize("where", ["decode", "commit"])
def test_a_rank_that_could_not_commit_is_named_in_the_next_step(ranks, where):
    for message in ranks.run(2, commits_on_one_rank, where):
        assert "step 2 (mod 256)" in message
        assert "step 1 (mod 256)" in message


# ------------------------------------------------------------------------------- bytes that change


def cut(everyone: Tensor) -> None:
    """The end of every frame is lost."""
    frame = everyone.view(dist.get_world_size(), -1)
    frame[1, frame.size(1) // 2 :] = 0


def flip_first_bit(everyone: Tensor) -> None:
    everyone.view(dist.get_world_size(), -1)[1, 0] ^= 1


def flip_version(everyone: Tensor) -> None:
    everyone.view(dist.get_world_size(), -1)[1, 15] ^= 0x30


def flip_last_byte(everyone: Tensor) -> None:
    everyone.view(dist.get_world_size(), -1)[1, -1] ^= 0x80


def with_damage(row: Row, damage: Callable[[Tensor], None], message: int) -> str:
    """All ranks receive the same damaged bytes in a message of the fourth step."""
    ddp, state = wrap(small_model(), row, flush_bytes=1, bucket_cap_mb=MANY_BUCKETS)
    train(ddp, range(5))
    real, calls = dist.all_to_all_single, []

    class Damaged:
        def __init__(self, work, everyone):
            self.work, self.everyone = work, everyone

        def wait(self):
            self.work.wait()
            damage(self.everyone)

    def to_all(everyone, *given, **options):
        calls.append(1)
        work = real(everyone, *given, **options)
        return Damaged(work, everyone) if len(calls) == message else work

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_to_all_single", to_all)
        return failed_step(ddp, state, 5)


@pytest.mark.parametrize("damage", [cut, flip_first_bit, flip_version, flip_last_byte])
@pytest.mark.parametrize("row", [ROWS["topk"], ROWS["sbc"]], ids=["topk", "sbc"])
def test_damaged_bytes_are_an_error_on_every_rank(ranks, row, damage):
    words = "wire version 1, expected 2" if damage is flip_version else "message is corrupt"
    for message in (1, 2):
        for error in ranks.run(2, with_damage, row, damage, message):
            assert error.startswith("rank 1: ")
            assert words in error


# --------------------------------------------------------------------------------- afterwards


def recovers(row: Row) -> None:
    """A state that met an error carries on, without DDP, as if it had not."""
    states = [
        CompressionState(small_model(), row.recipe, min_numel=row.min_numel) for _ in range(2)
    ]
    generator = torch.Generator().manual_seed(dist.get_rank())
    given = [
        {n: torch.randn(p.shape, generator=generator) for n, p in small_model().named_parameters()}
        for _ in range(4)
    ]

    def failing_on_one_rank(function):
        def wrapped(*args):
            if unlucky():
                raise MemoryError
            return function(*args)

        return wrapped

    select = type(row.recipe.select)
    selects = (select, "_take" if issubclass(select, TopK) else "__call__")

    for tensors in given:
        with pytest.MonkeyPatch.context() as patch:
            for place, name in (selects, (Message, "is_finite"), (Message, "sums")):
                patch.setattr(place, name, failing_on_one_rank(getattr(place, name)))
            with pytest.raises(PeerError):
                states[0].reduce(tensors)
        means = [state.reduce(tensors) for state in states]
        assert all(torch.equal(means[0][n], means[1][n]) for n in tensors)
    assert memory(states[0]) == memory(states[1])


@every_recipe
def test_a_state_carries_on_after_an_error(ranks, row):
    ranks.run(2, recovers, row)
