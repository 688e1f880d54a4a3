"""The way of a gradient on a CUDA device: results, memory and bytes are those of the CPU."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ddp_compress import CompressionState, PeerError, ops
from ddp_compress.exchange import AllGather
from ddp_compress.exchange.fused import FusedLists, can_fuse
from ddp_compress.exchange.separate import SeparateLists
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.layout import Layout
from ddp_compress.message.message import Message
from ddp_compress.message.plan import Plan, tables_for
from ddp_compress.ops import devices
from ddp_compress.ops.reference.wire_format import DecodeError
from ddp_compress.recipes import dgc
from ddp_compress.stats import Stats
from ddp_compress.step.worker import Worker
from ddp_compress.transport import channel, frame
from pretended_gpu import Counter, pretended_gpu
from tests import pretend_cuda
from tests.table import OPTIONS, RECIPES, ROWS, Row, every_family, every_row
from tests.test_laws import SIZES, Model, random_grads

GPUS = ["pretended", pytest.param("real", marks=pytest.mark.needs_cuda)]


@pytest.fixture(params=GPUS)
def cuda(request) -> Iterator[torch.device]:
    """A CUDA device."""
    with place(request.param) as device:
        yield device


@pytest.fixture(params=["cpu", *GPUS])
def device(request) -> Iterator[torch.device]:
    """Any device."""
    with place(request.param) as device:
        yield device


@contextmanager
def place(kind: str) -> Iterator[torch.device]:
    """In here there is a device of a kind."""
    if kind == "pretended":
        with pretend_cuda.pretend():
            yield pretend_cuda.CUDA
    else:
        yield torch.device("cpu") if kind == "cpu" else torch.device("cuda", 0)


@pytest.fixture
def frames(monkeypatch) -> list[bytes]:
    """Collects every message sealed."""
    sealed: list[bytes] = []
    seal = frame.seal

    def note(*args: Any) -> Tensor:
        sealed.append(bytes(seal(*args).tolist()))
        return seal(*args)

    monkeypatch.setattr(channel, "seal", note)
    return sealed


def to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: pretend_cuda.host_of(tensor).cpu() for name, tensor in tensors.items()}


def trained(row: Row, device: torch.device, dtype: torch.dtype, steps: int = 4) -> Any:
    """All that some steps of a rank leave behind, a non-finite one among them."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    state = CompressionState(Model(dtype, device), row.recipe, min_numel=row.min_numel)
    results = []
    for step in range(steps):
        grads = random_grads(100 * rank + step, dtype)
        if step == 2 and rank == 0:
            grads["a"][5] = torch.inf
        moved = {name: grad.to(device) for name, grad in grads.items()}
        results.append(to_host(state.reduce(moved)))
    saved = state.state_dict()
    state.close()
    kept = {slot: to_host(tensors) for slot, tensors in saved["tensors"].items()}
    return results, kept, saved["stats"], saved["step"]


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@every_family
def test_a_checkpoint_goes_from_device_to_device(row, cuda):
    devices = [torch.device("cpu"), cuda, torch.device("cpu")]
    uninterrupted = CompressionState(Model(), row.recipe)
    saved = uninterrupted.state_dict()
    for begin, device in enumerate(devices):
        state = CompressionState(Model(device=device), row.recipe)
        state.load_state_dict(saved)
        for step in (2 * begin, 2 * begin + 1):
            moved = {name: grad.to(device) for name, grad in random_grads(step).items()}
            expected = uninterrupted.reduce(random_grads(step))
            assert_same(to_host(state.reduce(moved)), expected)
        saved = state.state_dict()
        state.close()


@every_row
def test_a_device_gives_what_the_cpu_gives(row, cuda, frames):
    check_device(row, torch.float32, cuda, frames)


def scaled_and_clipped(device: torch.device) -> Any:
    """As with a GradScaler, whose scale grows."""
    state = CompressionState(Model(device=device), dgc(0.1, clip=0.5))
    results = []
    for step, scale in enumerate([1024.0, 1024.0, 2048.0]):
        grads = random_grads(step)
        layout = Layout(tuple(grads), tuple(map(len, grads.values())))
        flat = (torch.cat(list(grads.values())) * scale).to(device)
        state.push(flat, layout, last=True, scale=torch.tensor(scale).to(device)).wait()
        results.append(pretend_cuda.host_of(flat).cpu())
    saved = state.state_dict()["tensors"]
    state.close()
    return results, {slot: to_host(tensors) for slot, tensors in saved.items()}


def test_scaled_gradients_are_clipped_as_on_the_cpu(cuda):
    assert_same(scaled_and_clipped(cuda), scaled_and_clipped(torch.device("cpu")))


@every_family
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_device_gives_what_the_cpu_gives_in_every_dtype(row, dtype, cuda, frames):
    check_device(row, dtype, cuda, frames)


@pytest.mark.parametrize("name", ["topk", "dgc", "sbc"])
@pytest.mark.parametrize(
    ("behind", "words"), [(0, r"^rank 0: elias_fano: "), (-4, r"^rank 0: .* is not finite$")]
)
def test_a_bad_list_takes_the_step_back(name, behind, words, cuda):
    """A GPU tells of it when memory and gradients have been written."""
    row = ROWS[name]
    found: list[Any] = []
    for fails in (True, False):
        state = CompressionState(Model(device=cuda), row.recipe, min_numel=row.min_numel)
        for step in range(4):
            grads = {name: grad.to(cuda) for name, grad in random_grads(step).items()}
            if fails and step == 2:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(FusedLists, "encode", damaged(FusedLists.encode, behind))
                    with pytest.raises(ValueError, match=words):
                        state.reduce({name: grad.clone() for name, grad in grads.items()})
                assert state.step == 2
            found.append(to_host(state.reduce(grads)))
        found.append({slot: to_host(kept) for slot, kept in state.state_dict()["tensors"].items()})
        state.close()
    assert_same(found[:5], found[5:])


def damaged(
    encode: Callable[[FusedLists], Tensor | None], behind: int
) -> Callable[[FusedLists], Tensor | None]:
    """All bits from a byte on are set: more positions than slots, or a value that is none."""

    def encode_badly(lists: FusedLists) -> Tensor | None:
        body = encode(lists)
        if body is not None:
            body[behind:] = 0xFF
        return body

    return encode_badly


class Received:
    """Lists of fp32 values or means, of ranks that may have sent 60 entries of a and one of b."""

    def __init__(self, name: str, device: torch.device) -> None:
        layout = Layout(("a", "b", "c"), (600, 7, 2))
        plan = Plan((layout,), "tensor", 0.1, min_numel=5)
        chunk = Chunk(torch.zeros(layout.numel, device=device), layout)
        self._numel, self._k = plan.numel, plan.k
        self._recipe = ROWS[name].recipe
        self._message = Message([chunk], plan, step=0, memory=self._recipe.memory)

    def body(self, positions: list[int], worth: list[float]) -> Tensor:
        """What a rank sends."""
        indices = torch.tensor(positions, dtype=torch.int32)
        data = ops.elias_fano_encode(indices, self._numel, self._k)
        return torch.cat([data, torch.tensor(worth).view(torch.uint8)])

    def refusal(
        self, kind: type[FusedLists | SeparateLists], bodies: list[Tensor]
    ) -> tuple[str, str]:
        """When lists are refused, and in which words."""
        lists = kind(self._message, self._recipe, Stats(), rank=0)
        for when, read in (("at once", partial(lists.decode, bodies)), ("late", lists.confirm)):
            try:
                read()
            except ValueError as error:
                return when, str(error)
        return "never", ""


GOOD = [5, 600], [1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "positions", "worth", "words"),
    [
        ("topk", [5, 600], [1.0, -torch.inf], "values: a value is not finite"),
        ("sbc", [5, 600], [torch.nan, 2.0], "means: a mean is not finite"),
        ("topk", [5, 600, 601], [1.0, 2.0, 3.0], "positions: more than a group may send"),
        ("sbc", [5, 600, 601], [1.0, 2.0], "positions: more than a group may send"),
        ("topk", [5, 607], [1.0, 2.0], "positions: outside every group"),
        ("sbc", [5, 607], [1.0, 2.0], "positions: outside every group"),
        ("topk", [5, 600], [1.0], "values: got 4 bytes, expected 8"),
        ("sbc", [5, 600], [1.0], "means: got 4 bytes, expected 8"),
        ("topk", [5, 600], [1.0, 2.0, 3.0], "values: got 12 bytes, expected 8"),
        ("sbc", [5, 600], [1.0, 2.0, 3.0], "means: got 12 bytes, expected 8"),
    ],
)
def test_a_bad_list_is_refused_in_the_words_of_its_parts(device, name, positions, worth, words):
    """The first that is bad; a GPU's host hears of it late."""
    received = Received(name, device)
    good, bad = received.body(*GOOD), received.body(positions, worth)
    when = "late" if device.type == "cuda" else "at once"
    for bodies, rank in (([good, bad], 1), ([bad, good], 0), ([bad, bad], 0)):
        told = f"rank {rank}: {words}"
        assert received.refusal(FusedLists, bodies) == (when, told)
        assert received.refusal(SeparateLists, bodies) == ("at once", told)
    assert received.refusal(FusedLists, [good, good]) == ("never", "")


@pytest.mark.parametrize(("word", "value"), [(0, DecodeError.BAD_VALUES), (1, 61)])
def test_a_list_that_is_bad_on_its_device_alone_is_refused(device, monkeypatch, word, value):
    """What came can be read, but the kernel says otherwise."""
    decode = ops.entries_decode

    def misread(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
        indices, values, words = decode(*given)
        words[1, word] = int(value)
        return indices, values, words

    monkeypatch.setattr(ops, "entries_decode", misread)
    received = Received("topk", device)
    _, told = received.refusal(FusedLists, [received.body(*GOOD)] * 2)
    assert told == f"rank 1: damaged on its way to {device}"


def check_device(row: Row, dtype: torch.dtype, cuda: torch.device, frames: list[bytes]) -> None:
    expected = trained(row, torch.device("cpu"), dtype)
    of_cpu = frames.copy()
    frames.clear()
    assert_same(trained(row, cuda, dtype), expected)
    assert frames[-len(of_cpu) :] == of_cpu  # behind those of the warm-up


def test_the_workers_thread_stays_on_the_gradients_device(monkeypatch):
    """To be elsewhere when a stream is left would wake the GPU there."""
    told: list[Any] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: told.append((device, threading.get_ident()))
    )
    worker = Worker(torch.device("cuda", 3))

    def work() -> Generator[None, None, None]:
        told.append(threading.get_ident())
        yield from ()

    worker.submit(work(), cast(Any, None), None).result()
    worker.close()
    (device, thread), there = told
    assert (device, thread) == (torch.device("cuda", 3), there)
    assert thread != threading.get_ident()


@pytest.mark.parametrize("name", RECIPES | OPTIONS)
def test_the_hook_waits_for_the_gpu_once_at_most_and_last(monkeypatch, name):
    """Before that, the worker's thread waits for what the host must know; backward goes on.

    What is received in fused lists is written before the host knows whether it was good. In the
    last push the hook's thread waits for that, once for all messages.
    """
    row, add, waits = (RECIPES | OPTIONS)[name], Counter._add, list[threading.Thread]()

    def note(counter: Counter, **counts: int) -> None:
        waits.extend([threading.current_thread()] * counts.get("waits", 0))
        add(counter, **counts)

    def of_the_hook() -> int:
        return waits.count(threading.main_thread())

    monkeypatch.setattr(Counter, "_add", note)
    with pretended_gpu():
        state = CompressionState(Model(device=pretend_cuda.CUDA), row.recipe, flush_bytes=1)
        layouts = [Layout((name,), (SIZES[name],)) for name in ("a", "e")]
        flats = [torch.ones(layout.numel, device=pretend_cuda.CUDA) for layout in layouts]

        def step() -> list[int]:
            """How often the hook's thread waits in every push."""
            found = []
            for flat, layout in zip(flats, layouts, strict=True):
                before = of_the_hook()
                state.push(flat, layout, last=layout is layouts[-1])
                found.append(of_the_hook() - before)
            return found

        step()  # in its first push the ranks meet, and the GPU is warmed up
        waits.clear()
        fused = isinstance(row.recipe.exchange, AllGather) and can_fuse(row.recipe)
        assert step() == [0, fused]
        state.close()
    assert len(waits) > fused


def test_what_stays_on_a_pretended_gpu_goes_with_it():
    """A real one has the same name."""
    layout = Layout(("a",), (600,))

    def kept() -> list[torch.device]:
        places = *tables_for((layout,), "tensor", 0)._on, *devices._side_streams
        return [place for place in places if place.type == "cuda"]

    with pretend_cuda.pretend():
        state = CompressionState(Model(device=pretend_cuda.CUDA), ROWS["topk"].recipe)
        state.push(torch.ones(600, device=pretend_cuda.CUDA), layout, last=True)
        state.close()
        assert kept() == [pretend_cuda.CUDA] * 2
    assert kept() == []


def test_a_gradient_on_another_device_than_its_model_is_refused():
    state = CompressionState(Model(), ROWS["topk"].recipe)
    with pretend_cuda.pretend(), pytest.raises(PeerError, match="cuda:0, its model on the CPU"):
        state.reduce({"a": torch.ones(600, device=pretend_cuda.CUDA)})
