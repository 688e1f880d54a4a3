"""The way of a gradient on a CUDA device: results, memory and bytes are those of the CPU."""

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ddp_compress import CompressionState, PeerError
from ddp_compress.exchange.fused import FusedLists
from ddp_compress.message.layout import Layout
from ddp_compress.message.plan import tables_for
from ddp_compress.ops import devices
from ddp_compress.recipes import dgc
from ddp_compress.step.worker import Worker
from ddp_compress.transport import channel, frame
from tests import pretend_cuda
from tests.table import OPTIONS, RECIPES, ROWS, Row, every_family, every_row
from tests.test_laws import Model, random_grads


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.needs_cuda)])
def cuda(request) -> Iterator[torch.device]:
    """A CUDA device."""
    if request.param == "real":
        yield torch.device("cuda", 0)
        return
    with pretend_cuda.pretend():
        yield pretend_cuda.CUDA


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
def test_a_bad_list_takes_the_step_back(name, cuda):
    """A GPU tells of it when memory and gradients have been written."""
    row = ROWS[name]
    found: list[Any] = []
    for fails in (True, False):
        state = CompressionState(Model(device=cuda), row.recipe, min_numel=row.min_numel)
        for step in range(4):
            grads = {name: grad.to(cuda) for name, grad in random_grads(step).items()}
            if fails and step == 2:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(FusedLists, "encode", damaged(FusedLists.encode))
                    with pytest.raises(ValueError, match=r"^rank 0: elias_fano: "):
                        state.reduce({name: grad.clone() for name, grad in grads.items()})
                assert state.step == 2
            found.append(to_host(state.reduce(grads)))
        found.append({slot: to_host(kept) for slot, kept in state.state_dict()["tensors"].items()})
        state.close()
    assert_same(found[:5], found[5:])


def damaged(encode: Callable[[FusedLists], Tensor | None]) -> Callable[[FusedLists], Tensor | None]:
    """All bits are set: there are more positions than slots."""

    def encode_badly(lists: FusedLists) -> Tensor | None:
        body = encode(lists)
        return body if body is None else torch.full_like(body, 0xFF)

    return encode_badly


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
def test_the_hook_itself_never_waits_for_the_gpu(monkeypatch, name):
    """Whatever brings a number to the host runs on the worker's thread."""
    waits: list[str] = []  # the threads
    on_either, aten = pretend_cuda.on_either, torch.ops.aten

    def tolist(tensor: pretend_cuda.OnCuda) -> Any:
        waits.append(threading.current_thread().name)
        return tensor.host.tolist()

    def note(func: Any, args: Any, kwargs: Any) -> Any:
        there = [isinstance(arg, pretend_cuda.OnCuda) for arg in args[:2]]
        if (func, there) in (
            (aten._local_scalar_dense.default, [True]),
            (aten.copy_.default, [False, True]),
        ):
            waits.append(threading.current_thread().name)
        return on_either(func, args, kwargs)

    monkeypatch.setattr(pretend_cuda.OnCuda, "tolist", tolist)
    with pretend_cuda.pretend():
        monkeypatch.setattr(pretend_cuda, "on_either", note)
        state = CompressionState(Model(device=pretend_cuda.CUDA), (RECIPES | OPTIONS)[name].recipe)
        layouts = [Layout(("a",), (600,)), Layout(("b",), (7,))]
        for layout in layouts:
            flat = torch.ones(layout.numel, device=pretend_cuda.CUDA)
            state.push(flat, layout, last=layout is layouts[1])
        state.close()
    assert waits
    assert threading.main_thread().name not in waits


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
