"""The stream that states share on a GPU: which work runs on it, and between what."""

import copy
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ddp_compress import CompressionState, PeerError
from ddp_compress.memory import Residual
from ddp_compress.message.arena import Arena
from ddp_compress.message.layout import Layout
from ddp_compress.ops import devices
from ddp_compress.select import TopK
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.phases import Phases
from tests import pretend_cuda
from tests.table import ROWS
from tests.test_laws import SIZES, Model, random_grads

LAYOUTS = [Layout(("a",), (600,)), Layout(("b",), (7,))]


class FakeStream:
    """A stream that notes in its log what is put on it."""

    log: list[tuple[str, Any]]

    def __init__(self, *_: Any, **__: Any) -> None:
        self.log.append(("made", self))

    def record_event(self) -> "FakeStream":
        self.log.append(("recorded", self))
        return self

    def wait_event(self, event: Any) -> None:
        self.log.append(("waits for event", event))

    def wait_stream(self, other: Any) -> None:
        self.log.append(("waits for stream", other))

    def query(self) -> bool:
        return True


@pytest.fixture
def log(monkeypatch) -> Iterator[list[tuple[str, Any]]]:
    """What streams of a pretended GPU are asked; every thread has one that is current."""
    told: list[tuple[str, Any]] = []
    with pretend_cuda.pretend():
        FakeStream.log = told
        backward, current = FakeStream(), threading.local()
        told.clear()

        @contextmanager
        def on(stream: FakeStream) -> Iterator[None]:
            before = getattr(current, "stream", backward)
            current.stream = stream
            try:
                yield
            finally:
                current.stream = before

        monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
        monkeypatch.setattr(torch.cuda, "stream", on)
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda *_: getattr(current, "stream", backward)
        )
        yield told


def made(log: list[tuple[str, Any]]) -> list[FakeStream]:
    return [stream for what, stream in log if what == "made"]


def there(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: grad.to(pretend_cuda.CUDA) for name, grad in grads.items()}


def state_there(row: str = "topk") -> CompressionState:
    return CompressionState(Model(device=pretend_cuda.CUDA), ROWS[row].recipe)


def test_all_states_share_it(log):
    """Two would have kernels that each take the whole GPU run beside each other."""
    first, second = state_there("topk"), state_there("dgc")
    for state in (first, second, copy.deepcopy(first)):
        state.reduce(there(random_grads(0)))
        state.close()
    assert len(made(log)) == 1


def test_threads_share_it(log, monkeypatch):
    class Slow(FakeStream):
        def __init__(self, *args: Any, **options: Any) -> None:
            time.sleep(0.02)
            super().__init__(*args, **options)

    monkeypatch.setattr(torch.cuda, "Stream", Slow)
    found: list[devices.Stream] = []
    threads = [
        threading.Thread(target=lambda: found.append(devices.side_stream(pretend_cuda.CUDA)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == len(made(log)) == 1


def test_each_device_has_its_own(log):
    cuda = [torch.device("cuda", number) for number in (0, 1)]
    assert len({id(devices.side_stream(device)) for device in cuda * 2}) == 2
    assert len(made(log)) == 2


def test_work_on_it_comes_after_what_the_current_stream_has_to_do(log):
    def work() -> Generator[None, None, int]:
        log.append(("work", torch.cuda.current_stream()))
        yield
        return 7

    backward = torch.cuda.current_stream()
    driven = devices.side_stream(pretend_cuda.CUDA).drive(work())
    (side,) = made(log)
    assert log[1:] == [("recorded", backward)]
    next(driven)
    assert log[2:] == [("waits for event", backward), ("work", side)]
    with pytest.raises(StopIteration) as end:
        next(driven)
    assert end.value.value == 7
    assert torch.cuda.current_stream() is backward


def test_results_are_completed_on_it(log):
    """A future remembers the stream on which it was completed, and lets others wait for it."""
    state, completed = state_there(), list[Any]()
    flats = [torch.ones(layout.numel, device=pretend_cuda.CUDA) for layout in LAYOUTS]
    first = state.push(flats[0], LAYOUTS[0], last=False)
    first.add_done_callback(lambda _: completed.append(torch.cuda.current_stream()))
    state.push(flats[1], LAYOUTS[1], last=True)
    state.close()
    assert completed == made(log)


def test_a_step_is_taken_back_on_it(log, monkeypatch):
    """Where it was written; and whoever reads memory next does so behind that."""
    state, backward = state_there("vote-add-drop"), torch.cuda.current_stream()
    undo = Arena.undo

    def noted(arena: Arena) -> None:
        log.append(("undone", torch.cuda.current_stream()))
        undo(arena)

    monkeypatch.setattr(Arena, "undo", noted)
    state.reduce(there(random_grads(0)))
    (side,) = made(log)
    log.clear()
    state.discard()
    expected = [("waits for stream", backward), ("undone", side), ("waits for stream", side)]
    assert log == expected

    with monkeypatch.context() as patch:
        patch.setattr(Residual, "release", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            state.reduce(there(random_grads(0)))
    assert log[-4:] == [*expected, ("waits for stream", side)]
    assert torch.cuda.current_stream() is backward
    state.close()


def test_whoever_goes_on_without_results_does_so_behind_it(log, monkeypatch):
    """Memory that is let go of then may still be read or written there."""
    model = Model(device=pretend_cuda.CUDA)
    state = CompressionState(model, ROWS["topk"].recipe, flush_bytes=1)
    flat = torch.ones(600, device=pretend_cuda.CUDA)
    state.reduce(there(random_grads(0)))
    (side,) = made(log)
    with monkeypatch.context() as patch:
        patch.setattr(TopK, "_take", lambda *_: 1 / 0)
        with pytest.raises(PeerError):
            state.reduce(there(random_grads(0)))
    assert log[-1] == ("waits for stream", side)
    log.clear()
    state.push(flat, LAYOUTS[0], last=False)
    state.abandon_step()
    assert log[-1] == ("waits for stream", side)
    state.close()


class Done:
    """A collective that is over."""

    def wait(self) -> None:
        """Nothing is under way."""


def to_itself(_: Comm, bodies: list[Tensor], sizes: list[int]) -> Phases[list[Tensor]]:
    """An all-to-all of one rank, which is waited for as others are."""
    yield Done()
    return bodies


def test_what_cannot_be_sent_leaves_backward_on_its_stream(log, monkeypatch):
    """The hook's own thread sends that, and goes back to backward before it has come."""
    monkeypatch.setattr(Comm, "all_to_all", to_itself)
    backward = torch.cuda.current_stream()
    state = CompressionState(Model(), ROWS["topk"].recipe, flush_bytes=1)
    flats = [torch.ones(layout.numel, device=pretend_cuda.CUDA) for layout in LAYOUTS]
    state.push(flats[0], LAYOUTS[0], last=False)
    assert torch.cuda.current_stream() is backward
    with pytest.raises(PeerError, match="its model on the CPU"):
        state.push(flats[1], LAYOUTS[1], last=True)
    assert torch.cuda.current_stream() is backward


def test_what_a_warm_up_lets_go_of_is_no_longer_worked_on(log):
    state = state_there()
    state._connect()
    assert log[-1] == ("waits for stream", made(log)[0])  # backward's does, whose memory it is
    state.close()


@pytest.mark.parametrize("place", [torch.device("cpu"), pretend_cuda.CUDA], ids=str)
def test_a_gradient_that_a_failed_commit_has_overwritten_is_no_number(monkeypatch, place):
    with pretend_cuda.pretend():
        state = CompressionState(Model(device=place), ROWS["topk"].recipe)
        state.reduce({name: grad.to(place) for name, grad in random_grads(0).items()})
        flat = torch.ones(sum(SIZES.values())).to(place)
        monkeypatch.setattr(Residual, "release", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            state.push(flat, Layout(tuple(SIZES), tuple(SIZES.values())), last=True)
        state.close()
    assert pretend_cuda.host_of(flat).isnan().all()
