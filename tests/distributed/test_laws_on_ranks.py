"""The laws of docs/design.md that need several ranks."""

import random
import time

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import CompressionState, exponential_warmup, recipes
from ddp_compress.exchange import SharedMask
from ddp_compress.quantize import Values
from tests.distributed.soak import poisoned_steps, with_delays
from tests.distributed.training import (
    MANY_BUCKETS,
    backward,
    descend,
    digest,
    grads,
    loss,
    memory,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import ROWS, Row, every_family, every_keeping_row, every_row


def same_everywhere(results):
    """All ranks brought one thing: that thing."""
    assert all(result == results[0] for result in results)
    return results[0]


# ------------------------------------------------------------------------------------------ law 1


def sent_and_retained(row: Row) -> None:
    """Drives the state without DDP, so that every number is in sight."""
    model = small_model()
    state = CompressionState(model, row.recipe, min_numel=row.min_numel)
    names = dict(model.named_parameters())
    zeros = {name: torch.zeros(p.numel()) for name, p in names.items()}
    # A sum in half precision is rounded; so is one of dense training.
    quantize = row.recipe.quantize
    halves = isinstance(quantize, Values) and quantize.dtype != torch.float32
    summed = isinstance(row.recipe.exchange, SharedMask)
    tolerance = 2e-3 if halves and summed else 1e-5
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(6):
        before = state.state_dict()["tensors"]
        given = {n: torch.randn(p.shape, generator=generator) for n, p in names.items()}
        mean = state.reduce(given)
        after = state.state_dict()["tensors"]
        for name, grad in given.items():
            accumulated = before["residual"].get(name, zeros[name]) + grad.flatten()
            if row.momentum:
                accumulated += row.momentum * before["momentum"].get(name, zeros[name])
            sent = accumulated - after["residual"][name]
            sent /= dist.get_world_size()
            if "owner_residual" in after:  # what an owner has kept back of the mean
                sent -= after["owner_residual"][name]
                sent += before["owner_residual"].get(name, zeros[name])
            dist.all_reduce(sent)
            torch.testing.assert_close(mean[name].flatten(), sent, rtol=tolerance, atol=tolerance)


@every_keeping_row
def test_law_1_accumulated_is_sent_plus_retained(ranks, row):
    ranks.run(2, sent_and_retained, row)


# ------------------------------------------------------------------------------------------ law 2


def grads_of_every_step(row: Row) -> list[str]:
    ddp, _ = wrap(small_model(), row)
    digests = []
    for number in range(6):
        backward(ddp, number)
        digests.append(digest(grads(ddp)))
        descend(ddp)
    return [*digests, weights(ddp)]


@every_row
@pytest.mark.parametrize("world_size", [1, 3])
def test_law_2_ranks_agree_bit_for_bit_and_so_do_runs(ranks, row, world_size):
    first = same_everywhere(ranks.run(world_size, grads_of_every_step, row))
    again = same_everywhere(ranks.run(world_size, grads_of_every_step, row))
    assert first == again
    assert len(set(first)) == len(first)  # it did train


# ------------------------------------------------------------------------------------------ law 3


def beside_all_reduce(row: Row, dtype: torch.dtype) -> None:
    plain, (ddp, _) = DistributedDataParallel(small_model(dtype)), wrap(small_model(dtype), row)
    for number in range(4):
        for model in (plain, ddp):
            backward(model, number, dtype)
        tolerance = 4 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # of values
        for ours, theirs in zip(grads(ddp), grads(plain), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        descend(plain)
        with torch.no_grad():  # the next step starts from one point
            for ours, theirs in zip(ddp.parameters(), plain.parameters(), strict=True):
                ours.copy_(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("scope", "codec"), [("tensor", "elias_fano"), ("bucket", "golomb"), ("model", "raw")]
)
def test_law_3_density_1_equals_all_reduce(ranks, dtype, scope, codec):
    ranks.run(4, beside_all_reduce, Row(recipes.topk(1.0, scope, codec)), dtype)


def test_law_3_uncompressed_parameters_equal_all_reduce(ranks):
    row = Row(recipes.sbc(0.01), min_numel=10**6)
    ranks.run(2, beside_all_reduce, row, torch.float32)


def momentum_sgd() -> None:
    """Exact parameters under DGC, beside torch.optim.SGD on dense gradients."""
    plain = DistributedDataParallel(small_model())
    ddp, _ = wrap(small_model(), Row(recipes.dgc(0.01, momentum=0.9), min_numel=10**6))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    for number in range(6):
        backward(plain, number)
        optimizer.step()
    train(ddp, range(6))
    for ours, theirs in zip(ddp.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_law_3_uncompressed_parameters_under_dgc_are_momentum_sgd(ranks):
    ranks.run(2, momentum_sgd)


# ------------------------------------------------------------------------------------------ law 7


@every_family
def test_law_7_delays_change_nothing(ranks, row):
    """Every bucket is a message of its own; ranks sleep up to 10 ms around every hook call."""
    slow = same_everywhere(ranks.run(4, with_delays, row, 8, 0.01))
    fast = same_everywhere(ranks.run(4, with_delays, row, 8, 0.0))
    assert slow == fast


# ------------------------------------------------------------------------------------------ law 8


@every_row
def test_law_8_a_poisoned_step_never_was(ranks, row):
    same_everywhere(ranks.run(2, poisoned_steps, row, 5))


def poisoned_first_step(row: Row) -> tuple[dict[str, str], bool, str]:
    ddp, state = wrap(small_model(), row)
    ddp.zero_grad()
    bad = torch.inf if dist.get_rank() == 1 else 1.0
    (loss(ddp, dist.get_rank(), 0) * bad).backward()
    kept, nan = memory(state), all(g.isnan().all() for g in grads(ddp))
    train(ddp, range(4))
    return kept, nan, weights(ddp)


def test_law_8_holds_in_the_first_step(ranks):
    """The buckets that DDP then rebuilds have carried nothing yet."""
    results = ranks.run(2, poisoned_first_step, ROWS["topk"])
    ddp_weights = same_everywhere([r[2] for r in results])
    assert [r[:2] for r in results] == [({"step": "0"}, True)] * 2
    clean = ranks.run(2, clean_run, ROWS["topk"])
    assert ddp_weights == clean[0]


def poisoned_among_scheduled_steps() -> str:
    """Masks are a message's, whose end depends on the density of the step before."""
    row = Row(recipes.majority_vote(exponential_warmup(0.05, steps=4, start=0.25), scope="tensor"))
    options = {"flush_bytes": 300, "bucket_cap_mb": MANY_BUCKETS}
    ddp, _ = wrap(small_model(), row, **options)
    clean, _ = wrap(small_model(), row, **options)
    for model in (ddp, clean):
        train(model, range(2))
    ddp.zero_grad()
    bad = torch.inf if dist.get_rank() == 1 else 1.0
    (loss(ddp, dist.get_rank(), 2) * bad).backward()
    for model in (ddp, clean):
        train(model, range(2, 4))
    assert weights(ddp) == weights(clean)
    return weights(ddp)


def test_law_8_holds_where_messages_end_by_a_schedule(ranks):
    same_everywhere(ranks.run(2, poisoned_among_scheduled_steps))


def clean_run(row: Row) -> str:
    ddp, _ = wrap(small_model(), row)
    train(ddp, range(4))
    return weights(ddp)


def with_grad_scaler() -> tuple[list[float], str, int]:
    """The fourth step overflows on rank 1 alone."""
    ddp, state = wrap(small_model(), ROWS["sbc"])
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    state.use_scaler(scaler)
    scales = []
    for number in range(6):
        optimizer.zero_grad()
        bad = torch.inf if number == 3 and dist.get_rank() == 1 else 1.0
        scaler.scale(loss(ddp, dist.get_rank(), number) * bad).backward()
        before = weights(ddp)
        scaler.step(optimizer)
        scaler.update()
        assert (weights(ddp) == before) == (number == 3)
        scales.append(scaler.get_scale())
    return scales, weights(ddp), state.stats.aborted


def test_law_8_grad_scaler_skips_the_step_on_every_rank(ranks):
    scales, _, aborted = same_everywhere(ranks.run(2, with_grad_scaler))
    assert scales == [1024.0] * 3 + [512.0] * 3
    assert aborted == 1


def overflow_of_a_residual() -> tuple[bool, bool]:
    """Rank 1 keeps a large number back, then meets another."""
    large = torch.tensor([3.0e38, 3.2e38])
    state = CompressionState(torch.nn.Linear(2, 1, bias=False), recipes.topk(0.5))
    mine = large if dist.get_rank() == 1 else torch.ones(2)
    first = state.reduce({"weight": mine})["weight"]
    before = memory(state)
    second = state.reduce({"weight": mine})["weight"]
    assert memory(state) == before
    return bool(first.isfinite().all()), bool(second.isnan().all())


def test_law_8_an_overflow_inside_the_accumulation_aborts_too(ranks):
    """A finite gradient and a finite residual, whose sum is infinite."""
    assert ranks.run(2, overflow_of_a_residual) == [(True, True)] * 2


# ------------------------------------------------------------------------------- states and groups


def two_models() -> tuple[str, str]:
    """Steps of two compressed models take turns."""
    one, _ = wrap(small_model(), ROWS["dgc"])
    two, _ = wrap(small_model(), ROWS["sbc-golomb"])
    for number in range(5):
        train(one, [number])
        train(two, [number])
    return weights(one), weights(two)


def test_two_states_in_one_process_do_not_meet(ranks):
    together = same_everywhere(ranks.run(2, two_models))
    alone = [
        ranks.run(2, one_model, ROWS["dgc"])[0],
        ranks.run(2, one_model, ROWS["sbc-golomb"])[0],
    ]
    assert list(together) == alone


def one_model(row: Row) -> str:
    ddp, _ = wrap(small_model(), row)
    train(ddp, range(5))
    return weights(ddp)


def nested_groups() -> list[float]:
    """Ranks 0 and 1 share one group, 2 and 3 another."""
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    rank = dist.get_rank()
    state = CompressionState(
        torch.nn.Linear(2, 1, bias=False), recipes.topk(1.0), process_group=halves[rank // 2]
    )
    return state.reduce({"weight": torch.tensor([float(rank), 1.0])})["weight"].tolist()


def test_a_state_keeps_to_its_process_group(ranks):
    assert ranks.run(4, nested_groups) == [[0.5, 1.0]] * 2 + [[2.5, 1.0]] * 2


def sleepless_order(seed: int) -> list[float]:
    """Ranks come to `reduce` at their own time."""
    generator = random.Random(seed + dist.get_rank())
    state = CompressionState(torch.nn.Linear(3, 1, bias=False), recipes.topk(1.0))
    for _ in range(10):
        time.sleep(generator.uniform(0, 0.01))
        mean = state.reduce({"weight": torch.full((3,), float(dist.get_rank()))})["weight"]
    return mean.tolist()


def test_law_7_holds_without_ddp(ranks):
    assert ranks.run(4, sleepless_order, 0) == [[1.5] * 3] * 4


def every_dtype_in_one_model() -> tuple[str, set[torch.dtype]]:
    """DDP makes a bucket a dtype; so does a message."""

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
            layers = [
                torch.nn.Linear(12 if i == 0 else 9, 9, dtype=d) for i, d in enumerate(dtypes)
            ]
            self.layers = torch.nn.ModuleList([*layers, torch.nn.Linear(9, 3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x.to(layer.weight.dtype)).tanh()
            return x

    torch.manual_seed(0)
    ddp, state = wrap(Mixed(), ROWS["topk"])
    train(ddp, range(5))
    kept = state.state_dict()["tensors"]["residual"]
    assert kept["layers.2.weight"].dtype == torch.float64
    return weights(ddp), {tensor.dtype for tensor in kept.values()}


def test_dtypes_may_be_mixed_in_a_model(ranks):
    result = same_everywhere(ranks.run(2, every_dtype_in_one_model))
    assert result[1] == {torch.float32, torch.float64}


def learns(row: Row, dtype: torch.dtype) -> tuple[float, float, str]:
    ddp, _ = wrap(small_model(dtype), row, bucket_cap_mb=MANY_BUCKETS)
    losses = []
    for number in range(30):
        backward(ddp, number % 3, dtype)
        losses.append(loss(ddp, dist.get_rank(), number % 3, dtype).item())
        descend(ddp)
    return losses[0], losses[-1], weights(ddp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@every_family
def test_every_gradient_dtype_trains(ranks, row, dtype):
    results = ranks.run(2, learns, row, dtype)
    same_everywhere([r[2] for r in results])
    for first, last, _ in results:
        assert last < 0.7 * first
