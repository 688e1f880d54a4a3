"""Ranks whose gradients are on a GPU, real or pretended, get what ranks on the CPU get."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from ddp_compress import CompressionState, PeerError, compress_hook
from ddp_compress.message.layout import Layout
from ddp_compress.select import TopK
from tests import pretend_cuda
from tests.distributed.nodes import on_nodes
from tests.distributed.training import backward, descend, memory, small_model, weights, wrap
from tests.table import ROWS, Row, every_family
from tests.test_laws import Model
from tests.test_on_cuda import assert_same, trained

GPU = torch.device("cuda", 0)  # all ranks share one
needs_cuda = pytest.mark.needs_cuda


def on_cpu(row: Row) -> Any:
    return trained(row, torch.device("cpu"), torch.float32)


def on_pretended_gpu(row: Row) -> Any:
    with pretend_cuda.pretend():
        return trained(row, pretend_cuda.CUDA, torch.float32)


def on_gpu(row: Row) -> Any:
    return trained(row, GPU, torch.float32)


@every_family
@pytest.mark.parametrize("there", [on_pretended_gpu, pytest.param(on_gpu, marks=needs_cuda)])
def test_ranks_agree_with_ranks_on_the_cpu(ranks, row, there):
    for ours, theirs in zip(ranks.run(3, there, row), ranks.run(3, on_cpu, row), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("there", [on_pretended_gpu, pytest.param(on_gpu, marks=needs_cuda)])
@pytest.mark.parametrize("row", [ROWS["topk"], ROWS["hgc"]], ids=["topk", "hgc"])
def test_nodes_of_ranks_agree_with_those_on_the_cpu(ranks, row, there):
    ours, theirs = (ranks.run(4, on_nodes, 2, where, row) for where in (there, on_cpu))
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other)


def without_a_kernel() -> str:
    """On one rank the GPU cannot run what the recipe asks of it."""
    with pretend_cuda.pretend(), pytest.MonkeyPatch.context() as patch:
        state = CompressionState(Model(device=pretend_cuda.CUDA), ROWS["topk"].recipe)
        given = {"a": torch.ones(600, device=pretend_cuda.CUDA)}
        if dist.get_rank() == 1:
            patch.setattr(TopK, "_take", lambda *_: 1 / 0)
        with pytest.raises(PeerError) as error:
            state.reduce(given)
        patch.undo()
        state.reduce(given)
        state.close()
    return str(error.value)


def test_what_fails_before_ranks_have_met_is_told_to_all(ranks):
    for message in ranks.run(2, without_a_kernel):
        assert "rank 1: failed: ZeroDivisionError: division by zero" in message


def patient_hook(state: CompressionState, bucket: dist.GradBucket) -> Any:
    """Nothing runs beside anything else."""
    torch.cuda.synchronize()
    future = compress_hook(state, bucket)
    torch.cuda.synchronize()
    return future


def through_ddp(row: Row, **options: Any) -> str:
    ddp, state = wrap(small_model().to(GPU), row, flush_bytes=1, **options)
    for number in range(6):
        backward(ddp, number)
        descend(ddp)
    assert state.step == 6
    return weights(ddp)


@needs_cuda
@every_family
def test_ddp_on_one_gpu_over_gloo(ranks, row):
    first, second = ranks.run(2, through_ddp, row)
    assert first == second
    assert first == ranks.run(2, one_thing_at_a_time, row)[0]


def one_thing_at_a_time(row: Row) -> str:
    return through_ddp(row, hook=patient_hook)


def over_nccl(row: Row) -> None:
    group = dist.new_group([0], backend="nccl")
    assert through_ddp(row, process_group=group) == through_ddp(row)


@needs_cuda
@every_family
def test_nccl(ranks, row):
    ranks.run(1, over_nccl, row)


def with_autocast(row: Row, dtype: torch.dtype) -> str:
    """Half-precision forward and backward; one step overflows."""
    ddp, state = wrap(small_model().to(GPU), row)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    state.use_scaler(scaler)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    for number in range(6):
        optimizer.zero_grad()
        inputs = torch.full((8, 12), float(number), device=GPU)
        with torch.autocast("cuda", dtype):
            loss = ddp(inputs).square().mean()
        if number == 3:
            loss = loss * torch.inf
        before = memory(state)
        scaler.scale(loss).backward()
        assert (memory(state) == before) == (number == 3)
        if number != 3:
            scaler.step(optimizer)
            scaler.update()
    assert state.step == 5
    assert state.stats.aborted == 1
    return weights(ddp)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(ranks, dtype):
    first, second = ranks.run(2, with_autocast, ROWS["sbc"], dtype)
    assert first == second


def ahead_of_the_gpu(row: Row) -> None:
    """The hook returns while the GPU is still busy with what came before."""
    state = CompressionState(Model(device=GPU), row.recipe, flush_bytes=1)
    layouts = [Layout(("a",), (600,)), Layout(("b",), (7,))]
    flats = [torch.ones(layout.numel, device=GPU) for layout in layouts]
    state.push(flats[0], layouts[0], last=False)  # ranks meet
    state.push(flats[1], layouts[1], last=True)
    torch.cuda._sleep(2_000_000_000)
    busy = torch.cuda.Event()
    busy.record()
    state.push(flats[0], layouts[0], last=False)
    assert not busy.query()
    state.push(flats[1], layouts[1], last=True)


@needs_cuda
def test_the_hook_does_not_wait_for_the_gpu(ranks):
    ranks.run(2, ahead_of_the_gpu, ROWS["topk"])
