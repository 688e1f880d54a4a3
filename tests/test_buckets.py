"""After a restart gradients come in other buckets for a while; steps are taken in the old ones."""

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ddp_compress import CompressionState, PeerError, recipes
from ddp_compress.message.layout import Layout
from ddp_compress.step.buckets import Buckets
from tests import pretend_cuda
from tests.table import Row
from tests.test_laws import SIZES, Model, assert_same, kept, random_grads, state_of

Names = Sequence[Sequence[str]]

SAVED = [["e", "d"], ["c", "b"], ["a"]]
FIRST = [["a", "b", "c", "d", "e"]]  # as DDP begins
OTHERS = [["a", "e"], ["b", "c", "d"]]
ROW = Row(recipes.sbc(0.05, "bucket"))  # it matters in which buckets


def step(
    state: CompressionState,
    grads: Mapping[str, Tensor],
    buckets: Names,
    scale: Tensor | None = None,
) -> dict[str, Tensor]:
    """What a step gives whose gradients come in such buckets."""
    given: dict[str, Tensor] = {}
    for names in buckets:
        layout = Layout(tuple(names), tuple(SIZES[name] for name in names))
        flat = torch.cat([grads[name] for name in names])
        future = state.push(flat, layout, last=names is buckets[-1], scale=scale)
        given |= layout.split(flat)
    assert future.done()
    assert future.value() is flat
    return {name: given[name] for name in grads}


def pair() -> tuple[CompressionState, CompressionState]:
    """A state that goes on, and one that has loaded its checkpoint."""
    state, resumed = state_of(ROW), state_of(ROW)
    for number in range(3):
        step(state, random_grads(number), SAVED)
    resumed.load_state_dict(state.state_dict())
    return state, resumed


def by_checkpoint(state: CompressionState) -> CompressionState:
    resumed = state_of(ROW)
    resumed.load_state_dict(state.state_dict())
    return resumed


def by_pickle(state: CompressionState) -> CompressionState:
    return pickle.loads(pickle.dumps(state))


@pytest.mark.parametrize("resume", [by_checkpoint, by_pickle, copy.deepcopy])
@pytest.mark.parametrize("times", [1, 2])
def test_steps_are_taken_in_the_old_buckets(resume: Callable[..., Any], times: int):
    """DDP rebuilds its buckets after one step, or with static_graph after two."""
    state, _ = pair()
    resumed = resume(state)
    for number in range(3, 7):
        came = FIRST if number < 3 + times else SAVED
        grads = random_grads(number)
        assert_same(step(resumed, grads, came), step(state, grads, SAVED))
        assert resumed.state_dict()["buckets"] == SAVED
    assert_same(kept(resumed), kept(state))


@pytest.mark.parametrize(
    ("came", "sent"),
    [
        ([SAVED, FIRST], [SAVED, FIRST]),  # nothing to wait for
        ([FIRST, OTHERS, FIRST], [SAVED, OTHERS, FIRST]),  # rebuilt otherwise
        ([FIRST, FIRST, FIRST], [SAVED, SAVED, FIRST]),  # not rebuilt at all
        ([[["a", "e"]], FIRST], [[["a", "e"]], FIRST]),  # layers were frozen
    ],
)
def test_it_comes_to_an_end(came: Sequence[Names], sent: Sequence[Names]):
    """Nothing is lost either: what comes back is what would in those buckets."""
    state, resumed = pair()
    for number, (ours, theirs) in enumerate(zip(came, sent, strict=True), 3):
        names = {name for bucket in theirs for name in bucket}
        grads = {name: grad for name, grad in random_grads(number).items() if name in names}
        assert_same(step(resumed, grads, ours), step(state, grads, theirs))
        assert resumed.state_dict()["buckets"] == [list(bucket) for bucket in theirs]
    assert_same(kept(resumed), kept(state))


def test_a_bucket_is_of_one_dtype():
    """Layers have been given another since."""
    _, resumed = pair()
    layouts = [Layout((name,), (SIZES[name],)) for name in SIZES]
    dtypes = [torch.float64 if layout.names == ("d",) else torch.float32 for layout in layouts]
    for layout, dtype in zip(layouts, dtypes, strict=True):
        resumed.push(torch.ones(layout.numel, dtype=dtype), layout, last="e" in layout.names)
    assert resumed.state_dict()["buckets"] == [[name] for name in SIZES]


def test_reduce_has_a_bucket_of_its_own():
    state, resumed = pair()
    for each in (state, resumed):
        each.reduce(random_grads(3))
        assert each.state_dict()["buckets"] == SAVED
    assert_same(step(resumed, random_grads(4), FIRST), step(state, random_grads(4), SAVED))


def test_what_is_loaded_later_is_not_regrouped():
    """The ranks have agreed already on how they take their first steps."""
    state, resumed = pair()
    step(resumed, random_grads(3), SAVED)
    resumed.load_state_dict(state.state_dict())
    step(resumed, random_grads(3), FIRST)
    assert resumed.state_dict()["buckets"] == FIRST


def test_an_aborted_step_keeps_the_old_buckets():
    state, resumed = pair()
    poisoned = random_grads(3) | {"d": torch.tensor([torch.nan])}
    before = kept(resumed)
    assert all(grad.isnan().all() for grad in step(resumed, poisoned, OTHERS).values())
    assert_same(kept(resumed), before)
    assert resumed.state_dict()["buckets"] == SAVED
    assert_same(step(resumed, random_grads(3), OTHERS), step(state, random_grads(3), SAVED))


def test_a_step_that_was_abandoned_does_not_count():
    state, resumed = pair()
    for _ in range(3):
        resumed.push(torch.ones(600), Layout(("a",), (600,)), last=False)
        resumed.abandon_step()
    assert_same(step(resumed, random_grads(3), FIRST), step(state, random_grads(3), SAVED))


def test_a_step_that_failed_changes_nothing(monkeypatch):
    state, resumed = pair()
    before = kept(resumed)
    with monkeypatch.context() as patch:
        patch.setattr(type(ROW.recipe.select), "_take", lambda *_: 1 / 0)
        with pytest.raises(PeerError, match="rank 0 failed: ZeroDivisionError"):
            step(resumed, random_grads(3), FIRST)
    assert_same(kept(resumed), before)
    assert_same(step(resumed, random_grads(3), FIRST), step(state, random_grads(3), SAVED))


@pytest.mark.parametrize("device", [torch.device("cpu"), pretend_cuda.CUDA], ids=str)
def test_scaled_gradients_are_regrouped_on_their_device(device):
    state, _ = pair()
    expected = step(state, random_grads(3), SAVED)
    fresh, resumed = pair()
    saved = fresh.state_dict()
    with pretend_cuda.pretend():
        resumed = CompressionState(Model(device=device), ROW.recipe)
        resumed.load_state_dict(saved)
        scale = torch.tensor(1024.0).to(device)
        scaled = {name: (1024 * grad).to(device) for name, grad in random_grads(3).items()}
        found = step(resumed, scaled, FIRST, scale)
        resumed.close()
    on_host = {name: pretend_cuda.host_of(grad) / 1024 for name, grad in found.items()}
    assert_same(on_host, expected)


def test_where_there_is_no_memory_as_many_messages_go_out(monkeypatch):
    """Other ranks send theirs, and must not wait."""
    sent: list[Exception] = []

    def report(_: object, error: Exception) -> Iterator[None]:
        sent.append(error)
        return iter(())

    state = CompressionState(Model(), ROW.recipe, flush_bytes=1)
    state.load_state_dict(pair()[0].state_dict())
    monkeypatch.setattr("ddp_compress.step.transaction.Channel.report", report)
    monkeypatch.setattr(Buckets, "_parts", dict)  # finds nothing
    layout = Layout(tuple(SIZES), tuple(SIZES.values()))
    with pytest.raises(KeyError):
        state.push(torch.ones(layout.numel), layout, last=True)
    assert len(sent) == len(SAVED)


def test_ranks_compare_what_they_will_do():
    layouts = [Layout(("a",), (600,)), Layout(("b",), (7,))]
    digests = {Buckets(each).digest for each in ((), layouts, layouts[::-1])}
    assert len(digests) == 3
    settled = Buckets(layouts)
    settled.settle()
    assert settled.digest == Buckets().digest
