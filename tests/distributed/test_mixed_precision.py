"""GradScaler, autocast, half-precision wrappers and clipping, on ranks."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_wrapper,
    fp16_compress_wrapper,
)
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import CompressionState, PeerError, compress_hook, recipes
from tests.distributed.training import (
    LEARNING_RATE,
    MANY_BUCKETS,
    backward,
    grads,
    loss,
    memory,
    plain_grads,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import ROWS, Row, every_family

TOPK = ROWS["topk"]


def scaled_train(
    ddp: DistributedDataParallel,
    scaler: torch.amp.GradScaler,
    numbers: range,
    overflows: tuple[int, ...] = (),
) -> list[float]:
    """As `train`, through a scaler, with some steps that overflow on rank 1; the scales."""
    optimizer = torch.optim.SGD(ddp.parameters(), lr=LEARNING_RATE)
    scales = []
    for number in numbers:
        scales.append(scaler.get_scale())
        optimizer.zero_grad()
        bad = number in overflows and dist.get_rank() == 1
        one_loss = loss(ddp, dist.get_rank(), number) * (math.inf if bad else 1.0)
        scaler.scale(one_loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return scales


# -------------------------------------------------------------------------------------- GradScaler

OVERFLOWS = (2, 6, 7, 12, 19)


def overflowing_and_growing(row: Row) -> list[float]:
    ddp, state = wrap(small_model(), row)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    state.use_scaler(scaler)
    scales = scaled_train(ddp, scaler, range(24), OVERFLOWS)
    unscaled, plain = wrap(small_model(), row)
    train(unscaled, (number for number in range(24) if number not in OVERFLOWS))
    assert weights(ddp) == weights(unscaled)
    assert memory(state) == memory(plain)
    assert any(tensor.any() for tensor in state.state_dict()["tensors"]["residual"].values())
    assert (state.stats.aborted, state.step) == (5, 19)
    return scales


@every_family
def test_a_scaler_that_overflows_and_grows_changes_no_bit(ranks, row):
    """Weights and memory are those of training without a scaler, but for the skipped steps."""
    one, other = ranks.run(2, overflowing_and_growing, row)
    changes = [after / before for before, after in pairwise(one)]
    assert changes.count(0.5) == 5
    assert changes.count(2.0) >= 3
    assert one == other


def with_scales(row: Row, scales: list[float | None]) -> str:
    ddp, state = wrap(small_model(), row, bucket_cap_mb=MANY_BUCKETS, flush_bytes=1)
    scale = scales[dist.get_rank()]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    state.use_scaler(scaler)
    scaled_train(ddp, scaler, range(4))
    return weights(ddp)


def test_scales_that_differ_by_powers_of_two_do_no_harm(ranks):
    one, other = ranks.run(2, with_scales, TOPK, [1000.0, 4000.0])
    assert one == other == ranks.run(2, with_scales, TOPK, [2000.0, 2000.0])[0]


def refused_scales(row: Row, scales: list[float | None]) -> str:
    with pytest.raises(PeerError) as caught:
        with_scales(row, scales)
    return str(caught.value)


@pytest.mark.parametrize("name", ["topk", "vote-sharded"])
@pytest.mark.parametrize("scales", [[1024.0, 1000.0], [1024.0, None]], ids=repr)
def test_scales_that_differ_otherwise_are_told_to_every_rank(ranks, name, scales):
    for message in ranks.run(2, refused_scales, ROWS[name], scales):
        assert "ranks must compress alike, but rank 1 differs" in message
        assert "loss scale" in message


def joined_while_the_scale_grows() -> str:
    """Rank 1 has no more batches, and no more changes of its scale."""
    results = []
    for enabled in (True, False):
        ddp, state = wrap(small_model(), TOPK)
        scaler = torch.amp.GradScaler("cpu", 4.0, growth_interval=2, enabled=enabled)
        state.use_scaler(scaler)
        with ddp.join():
            scaled_train(ddp, scaler, range(9 - 6 * dist.get_rank()))
        results.append((weights(ddp), memory(state)))
    assert results[0] == results[1]
    return results[0][0]


def test_a_rank_that_has_joined_needs_no_scale(ranks):
    one, other = ranks.run(2, joined_while_the_scale_grows)
    assert one == other


# ---------------------------------------------------------------------------------------- autocast


def with_autocast(row: Row, dtype: torch.dtype, steps: int) -> tuple[str, float, int, float]:
    """Weights, last loss over first, steps aborted, last scale."""
    ddp, state = wrap(small_model(), row)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, enabled=dtype == torch.float16)
    state.use_scaler(scaler)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=LEARNING_RATE / 2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            one_loss = loss(ddp, dist.get_rank(), 0)
        scaler.scale(one_loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(one_loss.item())
    assert {t.dtype for t in state.state_dict()["tensors"]["residual"].values()} == {torch.float32}
    return weights(ddp), losses[-1] / losses[0], state.stats.aborted, scaler.get_scale()


@every_family
def test_bf16_autocast_trains(ranks, row):
    (one, fell, *_), (other, fell_there, *_) = ranks.run(2, with_autocast, row, torch.bfloat16, 40)
    assert one == other
    assert max(fell, fell_there) < 0.9


def test_fp16_autocast_trains_once_the_scale_has_come_down(ranks):
    """The first overflows are real ones: fp16 ends at 65504."""
    first, second = ranks.run(2, with_autocast, TOPK, torch.float16, 40)
    assert first[0] == second[0]
    assert max(first[1], second[1]) < 0.9
    assert first[2] == second[2] > 3
    assert first[3] == second[3] == 2.0 ** (24 - first[2])


def norm(state: CompressionState) -> float:
    """Of all residuals."""
    kept = state.state_dict()["tensors"]["residual"].values()
    return math.sqrt(sum(float(residual.square().sum()) for residual in kept))


def fp16_beside_fp32(row: Row) -> list[tuple[float, float, int]]:
    """The scale, the residuals' norm over that of fp32 training, and steps aborted, by step."""
    ddp, state = wrap(small_model(), row)
    twin, plain = wrap(small_model(), row)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    state.use_scaler(scaler)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=LEARNING_RATE)
    seen = []
    for number in range(40):
        aborted, scale = state.stats.aborted, scaler.get_scale()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            one_loss = loss(ddp, dist.get_rank(), number)
        scaler.scale(one_loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if state.stats.aborted == aborted:
            train(twin, [number])
        seen.append((scale, norm(state) / norm(plain), state.stats.aborted))
    return seen


@every_family
def test_residuals_are_in_unscaled_units_at_every_step(ranks, row):
    """However the scale moves, also by what really overflows fp16."""
    for seen in ranks.run(2, fp16_beside_fp32, row):
        scales, ratios, aborted = zip(*seen, strict=True)
        growths = sum(after > before for before, after in pairwise(scales))
        assert (aborted[-1] >= 5, growths >= 3) == (True, True), (aborted[-1], growths)
        assert max(scales) >= 2**8 * min(scales)
        assert 0.9 < min(ratios) <= max(ratios) < 1.1, (min(ratios), max(ratios))


# -------------------------------------------------------------------------------- torch's wrappers

WRAPPERS = {torch.float16: fp16_compress_wrapper, torch.bfloat16: bf16_compress_wrapper}


def half_of_all(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """At density 1: each rank's gradient rounded, their mean, rounded."""
    wrapped = WRAPPERS[dtype](compress_hook)

    def hook(state: CompressionState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        return wrapped(state, bucket)  # under a name that DDP does not refuse on the CPU

    row = Row(recipes.topk(1.0, "tensor"))
    ddp, state = wrap(small_model(), row, hook, bucket_cap_mb=MANY_BUCKETS, **options)
    for number in range(3):
        backward(ddp, number)
        twins = [plain_grads(small_model(), rank, [number]) for rank in range(2)]
        for found, one, two in zip(grads(ddp), *twins, strict=True):
            mean = (one.to(dtype).float() + two.to(dtype).float()) / 2
            assert found.dtype == torch.float32
            assert torch.equal(found, mean.to(dtype).float())
    assert state.step == 3


@pytest.mark.parametrize("dtype", WRAPPERS)
@pytest.mark.parametrize("gradient_as_bucket_view", [False, True])
@pytest.mark.parametrize("flush_bytes", [1, 2**18])
def test_half_precision_wrappers(ranks, dtype, gradient_as_bucket_view, flush_bytes):
    """Their callback waits for the step's last bucket as DDP does."""
    options = {"gradient_as_bucket_view": gradient_as_bucket_view, "flush_bytes": flush_bytes}
    ranks.run(2, half_of_all, dtype, options)


def wrapped_and_scaled() -> str:
    ddp, state = wrap(small_model(), TOPK, fp16_compress_wrapper(compress_hook))
    scaler = torch.amp.GradScaler("cpu")
    state.use_scaler(scaler)
    with pytest.raises(PeerError) as caught:
        scaled_train(ddp, scaler, range(1))
    return str(caught.value)


def test_a_half_precision_wrapper_with_a_scaler_names_our_own_option(ranks):
    for message in ranks.run(2, wrapped_and_scaled):
        assert "in place of fp16_compress_wrapper take a recipe's value_dtype" in message


# ---------------------------------------------------------------------------------------- clipping


def clipped(clip: float) -> float:
    """The mean's norm, where rank 0 is far above the threshold and the others have 0."""
    state = CompressionState(small_model(), recipes.dgc(1.0, 0.0, clip=clip))
    value = 100.0 if dist.get_rank() == 0 else 0.0
    return float(state.reduce({"0.weight": torch.full((288,), value)})["0.weight"].norm())


def test_the_threshold_falls_with_the_root_of_the_ranks(ranks):
    expected = pytest.approx(3.0 / math.sqrt(2) / 2, rel=1e-5)
    assert ranks.run(2, clipped, 3.0) == [expected] * 2


def clipped_differently() -> str:
    with pytest.raises(PeerError) as caught:
        clipped(3.0 + dist.get_rank())
    return str(caught.value)


def test_ranks_that_clip_differently_are_told(ranks):
    for message in ranks.run(2, clipped_differently):
        assert "clip=4" in message
