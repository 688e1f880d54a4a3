"""`CompressionState.metrics`: intervals counted by hand, no second lost, nothing while unasked."""

import copy
import itertools
import math
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile

import ddp_compress as dc
from ddp_compress import CompressionState, recipes, stages
from ddp_compress.step import metrics, transaction
from tests.distributed.nodes import on_nodes
from tests.distributed.shards import attach_sharded, local, on_shards
from tests.distributed.training import (
    MANY_BUCKETS,
    backward,
    loss,
    plain_grads,
    small_model,
    train,
    wrap,
)
from tests.table import ROWS, Row, every_recipe

SECONDS = ["encode_seconds", "wait_seconds", "decode_seconds", "hook_seconds"]
STAGES = SECONDS[:3]
GIVEN = torch.tensor([4.0, 1, 2, 3, 0, 0, 0, 9])
KEPT = torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 0])  # of it, where the half of them is sent


def read(state: CompressionState) -> dict[str, float]:
    found = state.metrics()
    assert all(type(value) is float for value in found.values())
    assert all(name.startswith("compression/") for name in found)
    return {name.removeprefix("compression/"): value for name, value in found.items()}


def alone(**options: Any) -> CompressionState:
    return CompressionState(nn.Linear(4, 2), recipes.topk(density=0.5), **options)


def unknown(found: dict[str, float]) -> set[str]:
    return {name for name, value in found.items() if math.isnan(value)}


def total(tensors: Any) -> float:
    return float(torch.cat([t.detach().flatten() for t in tensors]).norm())


def test_an_interval_is_counted_by_hand():
    """Four entries of eight; a header of 16 bytes, 4 for every value, and positions."""
    state = alone()
    state.reduce({"weight": GIVEN})
    found = read(state)
    bits = state.stats.payload_bits
    assert bits > 8 * (16 + 4 * 4)
    assert unknown(found) == {"gradient_norm", *SECONDS}
    known = {name: value for name, value in found.items() if name not in unknown(found)}
    assert known == {
        "steps": 1.0,
        "aborted": 0.0,
        "density": 0.5,
        "ratio": 32 * 8 / bits,
        "sent_bytes": 0.0,
        "received_bytes": 0.0,
        "dense_bytes": 0.0,
        "residual_norm": 1.0,
    }
    for _ in range(3):
        state.reduce({"weight": GIVEN})
    found = read(state)
    assert found["steps"] == 3.0
    assert found["ratio"] == 3 * 32 * 8 / (state.stats.payload_bits - bits)
    assert found["gradient_norm"] == pytest.approx(float(GIVEN.norm()))
    assert not unknown(found)


def test_where_no_step_was_taken_nothing_is_known():
    state = alone()
    state.reduce({"weight": GIVEN})
    state.metrics()
    found = read(state)
    assert (found["steps"], found["aborted"], found["residual_norm"]) == (0.0, 0.0, 1.0)
    assert unknown(found) == set(found) - {"steps", "aborted", "residual_norm"}


def test_what_keeps_no_residual_keeps_nothing_back():
    state = CompressionState(nn.Linear(4, 2), recipes.rotated(4))
    state.reduce({"weight": GIVEN})
    assert read(state)["residual_norm"] == 0.0


# --------------------------------------------------------------------------------------- seconds


class Clock:
    """Shows what it is told, whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def slow(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        """The same function, which takes so long."""

        def slowed(*args: Any, **options: Any) -> Any:
            self.now += seconds
            return function(*args, **options)

        return slowed


def test_every_stage_has_its_seconds(monkeypatch):
    clock, lists = Clock(), dc.exchange.fused.FusedLists
    monkeypatch.setattr(stages, "perf_counter", clock)
    monkeypatch.setattr(lists, "encode", clock.slow(lists.encode, 3.0))
    monkeypatch.setattr(lists, "decode", clock.slow(lists.decode, 5.0))
    monkeypatch.setattr(transaction, "_commit_chunks", clock.slow(transaction._commit_chunks, 7.0))
    state = alone()
    assert unknown(read(state)) > set(SECONDS)
    for _ in range(2):
        state.reduce({"weight": GIVEN})
    found = read(state)
    assert [found[name] for name in SECONDS] == [3.0, 0.0, 12.0, 15.0]


def ticks_of_a_step(row: Row) -> None:
    """The clock ticks when it is read: twice a hook outside of all stages."""
    ddp, state = wrap(small_model(), row, bucket_cap_mb=MANY_BUCKETS)
    train(ddp, [0, 1])
    clock, hooks = itertools.count(), itertools.count()
    push = CompressionState.push_bucket

    def counted(self: CompressionState, bucket: dist.GradBucket) -> Any:
        next(hooks)
        return push(self, bucket)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "perf_counter", lambda: float(next(clock)))
        patch.setattr(CompressionState, "push_bucket", counted)
        state.metrics()
        train(ddp, [2])
        found = read(state)
    assert state._transaction is None
    assert min(found[name] for name in STAGES) > 0
    assert sum(found[name] for name in STAGES) == found["hook_seconds"] - 2 * next(hooks)


@every_recipe
def test_on_one_thread_no_second_is_lost_or_counted_twice(ranks, row):
    ranks.run(2, ticks_of_a_step, row)


def late(name: str, waits: int, flush_bytes: int = 256 * 1024) -> dict[str, float]:
    """Rank 0 comes a tenth of a second after another has begun to wait, on whichever thread."""
    ddp, state = wrap(
        small_model(), ROWS[name], flush_bytes=flush_bytes, bucket_cap_mb=MANY_BUCKETS
    )
    train(ddp, [0, 1])
    state.metrics()
    store = dist.distributed_c10d._get_default_store()

    def telling(stage: Any) -> None:
        stages.enter(stage)
        if stage == "wait" and dist.get_rank() == waits:
            store.set("waits", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddp_compress.transport.comm.enter", telling)
        if dist.get_rank() == 0:
            store.wait(["waits"])
            time.sleep(0.1)
        train(ddp, [2])
    return read(state)


@pytest.mark.parametrize("name", ["topk", "hgc", "vote-sharded", "topk-sharded"])
@pytest.mark.parametrize("flush_bytes", [1, 256 * 1024])
def test_who_waits_for_others_says_so(ranks, name, flush_bytes):
    came_late, waited = ranks.run(2, late, name, 1, flush_bytes)
    assert min(min(each[stage] for stage in STAGES) for each in (came_late, waited)) > 0
    assert waited["wait_seconds"] >= 0.1
    assert waited["hook_seconds"] > 0


def on_two_levels(kind: str, waits: int) -> dict[str, float]:
    if kind == "nodes":
        found = on_nodes(2, late, "topk", waits)
        assert found["within_sent_bytes"] > found["sent_bytes"]
        return found
    return on_shards(2, late, "topk", waits)


@pytest.mark.parametrize(("kind", "waits"), [("nodes", 1), ("shards", 2)])
def test_over_two_levels(ranks, kind, waits):
    """In its node another rank waits for the late one; of shards it is one in the other replica."""
    found = ranks.run(4, on_two_levels, kind, waits)
    for each in found:
        assert not unknown(each)
        assert each["steps"] == 1.0
    assert found[waits]["wait_seconds"] >= 0.1


def rounds() -> None:
    """The clock ticks when it is read: twice a round outside of all stages."""
    clock = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "perf_counter", lambda: float(next(clock)))
        take_rounds()


def take_rounds() -> None:
    model = small_model()
    ddp = nn.parallel.DistributedDataParallel(model)
    state = CompressionState(ddp, recipes.topk(0.1))
    optimizer = dc.LocalUpdates(torch.optim.SGD(model.parameters(), 0.1), ddp, state, period=2)
    state.metrics()
    before = [p.detach().clone() for p in model.parameters()]
    for number in range(4):
        if number == 1:
            moved = copy.deepcopy(model)
        backward(ddp, number)
        if number == 1:
            for weight, parameter in zip(moved.parameters(), model.parameters(), strict=True):
                weight.data.sub_(parameter.grad, alpha=0.1)
        optimizer.step()
    found = read(state)
    delta = [m - b for m, b in zip(moved.parameters(), before, strict=True)]
    assert found["steps"] == 2.0
    assert found["gradient_norm"] == pytest.approx(total(delta))
    assert min(found[stage] for stage in STAGES) > 0
    assert sum(found[stage] for stage in STAGES) == found["hook_seconds"] - 2


def test_rounds_are_the_steps_of_local_updates(ranks):
    ranks.run(2, rounds)


# ----------------------------------------------------------------------------------------- norms


def own_norms(name: str) -> None:
    """Of the first step after a call, and of what is kept at the next."""
    ddp, state = wrap(small_model(), ROWS[name], bucket_cap_mb=MANY_BUCKETS)
    train(ddp, [0])
    state.metrics()
    own = total(plain_grads(copy.deepcopy(ddp.module), dist.get_rank(), [1]))
    train(ddp, [1, 2])
    found = read(state)
    assert found["gradient_norm"] == pytest.approx(own, rel=1e-5)
    kept = state.memory()["residual"].values()
    assert found["residual_norm"] == pytest.approx(total(kept), rel=1e-5)
    assert found["residual_norm"] > 0


@pytest.mark.parametrize("name", ["topk", "dgc", "hgc", "stc"])
def test_norms_are_of_this_ranks_own(ranks, name):
    ranks.run(2, own_norms, name)


def test_a_gradient_is_measured_unscaled_and_unclipped(ranks):
    ranks.run(2, scaled)


def scaled() -> None:
    row = Row(recipes.dgc(0.1, 0.9, clip=0.01))
    ddp, state = wrap(small_model(), row)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    state.use_scaler(scaler)
    state.metrics()
    own = total(plain_grads(copy.deepcopy(ddp.module), dist.get_rank(), [0]))
    scaler.scale(loss(ddp, dist.get_rank(), 0)).backward()
    assert read(state)["gradient_norm"] == pytest.approx(own, rel=1e-5)


def test_half_gradients_are_measured_in_fp32():
    """Their squares would be beyond the largest fp16."""
    model = nn.Linear(4, 2).half()
    state = CompressionState(model, recipes.topk(density=0.5))
    state.metrics()
    state.reduce({"weight": torch.full((8,), 1000.0, dtype=torch.float16)})
    assert read(state)["gradient_norm"] == pytest.approx(1000 * 8**0.5)


def shard_norms() -> tuple[float, float, float]:
    model, state = attach_sharded(small_model(), ROWS["topk"])
    state.metrics()
    whole = total(plain_grads(small_model(), dist.get_rank(), [0]))
    backward(model, 0)
    kept = state.memory()["residual"].values()
    found = read(state)
    assert found["residual_norm"] == pytest.approx(total(kept), rel=1e-5)
    assert all(p.grad is not None for p in model.parameters())
    assert sum(local(p.grad).numel() for p in model.parameters()) < 755
    return found["gradient_norm"], whole, found["steps"]


def test_of_a_sharded_model_norms_are_of_the_shard(ranks):
    """Those of a replica's shards make up the norm of its mean."""
    found = ranks.run(4, shard_norms)
    mean = math.hypot(found[0][0], found[1][0])
    assert 0 < mean <= (found[0][1] + found[1][1]) / 2
    assert {steps for *_, steps in found} == {1.0}


# ------------------------------------------------------------------------------ while not asked


def test_unasked_no_clock_is_read_and_no_norm_taken(monkeypatch):
    clock, norm = Mock(return_value=0.0), Mock(side_effect=metrics.norm)
    monkeypatch.setattr(stages, "perf_counter", clock)
    monkeypatch.setattr("ddp_compress.step.transaction.norm", norm)
    state = alone()
    for _ in range(2):
        state.reduce({"weight": GIVEN})
    state.load_state_dict(state.state_dict())
    state.reduce({"weight": GIVEN})
    assert (clock.call_count, norm.call_count) == (0, 0)
    state.metrics()
    state.reduce({"weight": GIVEN})
    assert clock.call_count > 2
    assert norm.call_count == 1
    state.reduce({"weight": GIVEN})
    assert norm.call_count == 1
    state.metrics()
    state.reduce({"weight": GIVEN})
    assert norm.call_count == 2


# ------------------------------------------------------------------------------------- adapters


def test_the_pages_lines_run(capsys):
    page = Path(__file__).parents[2] / "docs" / "statistics.md"
    loggers, profiled = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    state, writer, wandb, module = alone(), Mock(), Mock(), Mock()
    names = {"state": state, "writer": writer, "wandb": wandb, "self": module, "step": 7}
    exec(loggers, names)
    every = set(state.metrics())
    assert {call.args[0] for call in writer.add_scalar.call_args_list} == every
    assert set(wandb.log.call_args.args[0]) == every == set(module.log_dict.call_args.args[0])
    exec(profiled, {"train_step": lambda: state.reduce({"weight": GIVEN})})
    assert "ddp_compress: encode" in capsys.readouterr().out


# ----------------------------------------------------------------- what comes between the steps


def aborted() -> None:
    ddp, state = wrap(small_model(), ROWS["topk"])
    train(ddp, [0, 1])
    state.metrics()
    for number in (2, 3):
        handle = next(ddp.parameters()).register_hook(
            lambda grad: grad * (torch.inf if dist.get_rank() == 0 else 1)
        )
        backward(ddp, number)
        handle.remove()
    found = read(state)
    assert (found["steps"], found["aborted"]) == (0.0, 2.0)
    assert unknown(found) >= {"density", "ratio", "dense_bytes"}
    assert math.isfinite(found["gradient_norm"]) == (dist.get_rank() == 1)
    assert found["hook_seconds"] > 0
    train(ddp, [4, 5])
    found = read(state)
    assert (found["steps"], found["aborted"]) == (2.0, 0.0)
    assert not unknown(found)


def test_aborted_steps_are_steps_that_sent(ranks):
    ranks.run(2, aborted)


def test_a_step_that_was_aborted_has_elements_too():
    state = alone()
    state.metrics()
    state.reduce({"weight": GIVEN})
    state.reduce({"weight": GIVEN * torch.nan})
    found = read(state)
    assert (found["steps"], found["aborted"]) == (1.0, 1.0)
    assert found["density"] == 4 / 16
    assert found["ratio"] == 32 * 16 / state.stats.payload_bits


def test_a_discarded_step_was_taken():
    state = alone()
    state.metrics()
    state.reduce({"weight": GIVEN})
    state.discard()
    found = read(state)
    assert (found["steps"], found["density"], found["residual_norm"]) == (1.0, 0.5, 0.0)


def test_half_a_step_is_none():
    state = alone()
    state.metrics()
    state.push(10 * GIVEN, dc.Layout(("weight",), (8,)), last=False)
    state.abandon_step()
    state.reduce({"weight": GIVEN})
    found = read(state)
    assert found["steps"] == 1.0
    assert found["gradient_norm"] == pytest.approx(float(GIVEN.norm()))


def test_a_loaded_checkpoint_begins_an_interval():
    state = alone()
    for _ in range(3):
        state.reduce({"weight": GIVEN})
    saved = state.state_dict()
    resumed = alone()
    resumed.metrics()
    resumed.reduce({"weight": GIVEN})
    resumed.load_state_dict(saved)
    assert read(resumed)["steps"] == 0.0
    resumed.reduce({"weight": GIVEN})
    found = read(resumed)
    assert (found["steps"], found["density"]) == (1.0, 0.5)
    assert not unknown(found)


@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_a_copy_begins_an_interval(twin):
    state = alone()
    state.metrics()
    state.reduce({"weight": GIVEN})
    other = twin(state)
    assert unknown(read(other)) >= {"gradient_norm", *SECONDS}
    other.reduce({"weight": GIVEN})
    found = read(other)
    assert (found["steps"], found["density"]) == (1.0, 0.5)
    assert not unknown(found)
    other.close()


# -------------------------------------------------------------------------------------- profiler


def ranges(name: str, flush_bytes: int, all_threads: bool) -> set[str]:
    ddp, state = wrap(
        small_model(), ROWS[name], flush_bytes=flush_bytes, bucket_cap_mb=MANY_BUCKETS
    )
    train(ddp, [0, 1])
    config = torch._C._profiler._ExperimentalConfig(profile_all_threads=all_threads)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=config) as profiler:
        train(ddp, [2])
    assert unknown(read(state)) >= set(SECONDS)  # nobody has asked
    return {name for name in NAMES if name in {e.key for e in profiler.key_averages()}}


NAMES = {f"ddp_compress: {name}" for name in ("hook", "encode", "wait", "decode", "worker")}


def test_the_profiler_sees_the_stages(ranks):
    for found in ranks.run(2, ranges, "topk", 256 * 1024, False):
        assert found == NAMES - {"ddp_compress: worker"}


def test_the_profiler_sees_those_of_the_worker(ranks):
    for found in ranks.run(2, ranges, "topk-sharded", 1, True):
        assert found == NAMES
    for found in ranks.run(2, ranges, "topk-sharded", 1, False):
        assert found >= {f"ddp_compress: {name}" for name in ("hook", "worker", "decode")}


# ------------------------------------------------------------------------------------------ repr


def test_a_state_tells_of_itself_in_a_line():
    state = alone()
    assert repr(state) == "CompressionState(topk, density=0.5, step=0, elements=10, ratio=nan)"
    state.reduce({"weight": GIVEN})
    ratio = 32 * 8 / state.stats.payload_bits
    assert repr(state) == (
        f"CompressionState(topk, density=0.5, step=1, elements=10, ratio={ratio:.1f})"
    )


def test_a_density_schedule_is_told_by_its_latest():
    schedule = dc.exponential_warmup(0.25, steps=1, start=0.5)
    state = CompressionState(nn.Linear(4, 2), recipes.topk(schedule))
    assert repr(state) == "CompressionState(topk, step=0, elements=10, ratio=nan)"
    for density in ("0.5", "0.25"):
        state.reduce({"weight": GIVEN})
        assert f"(topk, density={density}, step=" in repr(state)
