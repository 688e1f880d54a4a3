"""What GPU benches count, and what they take for a difference."""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

import device_work
import gpu_smoke
import hazards
import hook_path
from ddp_compress import CompressionState
from ddp_compress.memory import NoMemory
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import Layout
from ddp_compress.message.message import Message
from ddp_compress.message.plan import Plan
from ddp_compress.ops.devices import to_device_of, to_host
from device_work import Work, work_of
from gpu import CUDA
from pretended_gpu import pretended_gpu
from tests.table import OPTIONS, RECIPES
from tests.test_laws import Model


@pytest.fixture(autouse=True)
def pretended() -> Iterator[None]:
    """A GPU that is pretended."""
    with pretended_gpu():
        yield


def counted(function: Callable[[], object]) -> dict[str, int]:
    """What it asks of the device, where that is anything."""
    found = asdict(device_work.work_of(function))
    del found["calls"]
    return {name: count for name, count in found.items() if count}


def pinned() -> Tensor:
    return torch.empty(3, pin_memory=True)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda x: x * 2 + 1, {"launches": 2}),
        (lambda x: x[1:].view(-1).split(1), {}),
        (lambda x: torch.empty_like(x), {}),
        (lambda x: x.to(CUDA), {}),
        (lambda x: x.clone(), {"launches": 1}),
        (lambda x: x.double(), {"launches": 1}),
        (lambda x: x.copy_(x + 1), {"launches": 2}),
        (lambda x: torch.cat([x, x]), {"launches": 1}),
        (lambda x: torch.cat([x, x > 0]), {"launches": 3}),
        (lambda x: x.sum().item(), {"launches": 1, "from_device": 1, "waits": 1}),
        (lambda x: x.tolist(), {"from_device": 1, "pageable": 1, "waits": 1}),
        (lambda x: x[x > 0], {"launches": 2, "from_device": 1, "waits": 1}),
        (to_host, {"from_device": 1, "waits": 1}),
        (lambda x: pinned().copy_(x, non_blocking=True), {"from_device": 1}),
        (lambda x: torch.empty(3).copy_(x), {"from_device": 1, "pageable": 1, "waits": 1}),
        (lambda x: to_device_of(torch.ones(3), x), {"to_device": 1}),
        (lambda x: to_device_of(pinned()[1:], x), {"to_device": 1}),
        (lambda x: pinned().to(CUDA), {"to_device": 1, "waits": 1}),
        (lambda x: to_device_of(torch.ones(0), x), {}),
        (lambda x: torch.cuda.current_stream().synchronize(), {"waits": 1}),
        (lambda x: torch.ops.ddp_compress.largest(x.long(), 2), {"launches": 3}),
    ],
)
def test_what_is_asked_of_a_pretended_gpu_is_counted(work, expected):
    data = torch.tensor([1.0, -2.0, 3.0]).to(CUDA)
    assert counted(lambda: work(data)) == expected


# Of one message: what stands in bench/RESULTS.md, and must not grow unnoticed.
COUNTS = {
    ("sbc", 4): (2, 9, 1, 2, 0, 29),
    ("sbc", 16): (2, 12, 1, 2, 0, 29),
    ("topk", 4): (2, 9, 1, 2, 0, 30),
    ("topk", 16): (2, 12, 1, 2, 0, 30),
    ("dgc", 4): (2, 13, 1, 2, 0, 34),
    ("dgc", 16): (2, 16, 1, 2, 0, 34),
}


@pytest.mark.parametrize(
    ("name", "world_size", "messages"), [*((*case, 1) for case in COUNTS), ("sbc", 4, 3)]
)
def test_what_the_hooks_path_asks_of_a_gpu(name, world_size, messages):
    with hook_path.one_of(world_size):
        path = hook_path.HookPath(hook_path.RECIPES[name], messages, numel=900, parameters=3)
        found = hook_path.counts(path)
        path.state.close()
    kinds = ("waits", "launches", "to_device", "from_device", "pageable", "calls")
    waits, *others = COUNTS[name, world_size]
    # For the bytes of each, then once for what is said of all.
    assert [found[kind] for kind in kinds] == [waits - 1 + 1 / messages, *others]


@pytest.mark.parametrize("name", RECIPES | OPTIONS)
def test_no_copy_is_of_pageable_memory(name):
    """One may wait for all that its stream has to do."""
    row, layouts = (RECIPES | OPTIONS)[name], [Layout(("a",), (600,)), Layout(("e",), (90,))]
    state = CompressionState(Model(device=CUDA), row.recipe, min_numel=row.min_numel)
    flats = [torch.ones(layout.numel).to(CUDA) for layout in layouts]

    def step() -> None:
        for flat, layout in zip(flats, layouts, strict=True):
            state.push(flat, layout, last=layout is layouts[1])

    step()
    found = counted(step)
    state.close()
    assert found["to_device"]
    assert "pageable" not in found


@pytest.mark.parametrize(("chunks", "waits"), [(1, 0), (5, 1)])
def test_entries_are_found_in_all_chunks_in_one_wait(chunks, waits):
    layouts = tuple(Layout((f"p{number}",), (4,)) for number in range(chunks))
    plan = Plan(layouts, "bucket", density=0.5)
    given = [Chunk(torch.arange(4.0).to(CUDA), layout) for layout in layouts]
    message = Message(given, plan, step=0, memory=NoMemory())
    positions = torch.tensor([0, 3] if chunks == 1 else [0, 3, 4, 17], dtype=torch.int32).to(CUDA)
    entries, cut = Entries(positions, message.values_at(positions)), list[Entries]()

    def work() -> None:
        cut.extend(message.cut(entries))

    assert counted(work).get("waits", 0) == waits
    assert counted(lambda: message.values_at(positions)).get("waits", 0) == waits
    found = [(part.positions.tolist(), part.values.tolist()) for part in cut]
    rest = [([0], [0.0]), ([], []), ([], []), ([1], [1.0])]
    assert found == [([0, 3], [0.0, 3.0]), *(rest if chunks > 1 else [])]


def test_values_of_all_positions_are_cut_by_chunk():
    layouts = Layout(("a",), (2,)), Layout(("b",), (1,))
    chunks = [Chunk(torch.zeros(layout.numel), layout) for layout in layouts]
    message = Message(chunks, Plan(layouts, "tensor", 1.0), step=0, memory=NoMemory())
    parts = message.cut(Entries(None, torch.tensor([1.0, 2.0, 3.0])))
    assert [(part.indices, part.values.tolist()) for part in parts] == [
        (None, [1.0, 2.0]),
        (None, [3.0]),
    ]


def test_a_trace_is_read():
    kernel = {"cat": "kernel", "name": "select"}
    copy = {"cat": "gpu_memcpy", "dur": 1.0}
    events = [
        {"ph": "M", "name": "process_name"},
        {"cat": "cpu_op", "name": "aten::add", "ts": 0.0, "dur": 90.0},
        kernel | {"ts": 10.0, "dur": 5.0},
        kernel | {"ts": 12.0, "dur": 2.0},  # on another stream
        kernel | {"ts": 14.0, "dur": 4.0},
        {"cat": "gpu_memset", "name": "Memset (Device)", "ts": 20.0, "dur": 0.5},
        copy | {"name": "Memcpy DtoD (Device -> Device)", "ts": 30.0},
        copy | {"name": "Memcpy HtoD (Pageable -> Device)", "ts": 40.0},
        copy | {"name": "Memcpy DtoH (Device -> Pinned)", "ts": 50.0},
        {"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 50.0, "dur": 2.0},
        {"cat": "cuda_runtime", "name": "cudaMemcpyAsync", "ts": 50.0, "dur": 2.0},
        {"cat": "cuda_runtime", "name": "cudaDeviceSynchronize", "ts": 60.0, "dur": 2.0},
    ]
    expected = Work(waits=1, launches=5, to_device=1, from_device=1, pageable=1, busy=11.5)
    assert device_work.seen_in(events) == expected


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_trace_is_kept(tmp_path):
    """By the profiler, which sees nothing on a GPU here."""
    found = work_of(lambda: torch.ones(3).add(1), tmp_path / "trace.json.gz")
    assert found == Work(busy=0.0)
    assert b"aten::add" in gzip.decompress((tmp_path / "trace.json.gz").read_bytes())


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        ([1.0, float("nan")], [1.0, -float("nan")], ""),
        ([1.0, 0.0], [1.0, -0.0], "1 of 2 elements of result 0, the first at 1: 0.0 on the device"),
        ([2.0, float("nan")], [1.0, 0.0], "2 of 2 elements of result 0, the first at 0: 2.0"),
        ([1.0], [1.0, 2.0], r"result 0 is torch.float32 [1] on the device, torch.float32 [2] on"),
        ([1, 2], [1, 3], "1 of 2 elements of result 0, the first at 1: 2 on the device, 3 on"),
    ],
)
def test_a_difference_is_told(found, expected, words):
    told = gpu_smoke.difference([torch.tensor(found).to(CUDA)], [torch.tensor(expected)])
    assert told.startswith(words)
    assert bool(told) == bool(words)


def test_every_kernel_has_a_case():
    tried = {case.op for case in gpu_smoke.Cases(1000).all()}
    assert tried == gpu_smoke.kernels_here(pretend=True)


def test_a_hazard_that_changes_a_bit_ends_the_program():
    ones = torch.ones(3).to(CUDA)
    hazards.compare([ones], [ones.clone()])
    with pytest.raises(SystemExit, match="not those of a state alone"):
        hazards.compare([ones], [ones * 2])
