"""Law 4: residuals stay with their parameters, whatever DDP does, and through checkpoints."""

import io
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import CompressionState, attach, compress_hook, recipes
from tests.distributed.training import (
    LEARNING_RATE,
    backward,
    descend,
    loss,
    memory,
    simulate_topk,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import ROWS, Row, every_row

DENSITY = 0.1
TOPK = Row(recipes.topk(DENSITY, "tensor"))


def check_simulation(
    ddp: DistributedDataParallel, state: CompressionState, batches: list[list[list[int]]]
) -> None:
    """Parameters and this rank's residuals equal those of `simulate_topk`, bit for bit."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    model, residuals = simulate_topk(world_size, DENSITY, batches)
    kept = state.state_dict()["tensors"]["residual"]
    for (name, ours), theirs in zip(model.named_parameters(), residuals[rank], strict=True):
        assert torch.equal(kept[name], theirs.flatten()), f"residual of {name}"
        assert torch.equal(ours, ddp.module.get_parameter(name)), name


def one_batch_a_rank(steps: Iterable[int]) -> list[list[list[int]]]:
    return [[[step]] * dist.get_world_size() for step in steps]


def through_ddp(options: dict[str, Any]) -> int:
    sizes = []

    def hook(
        state: CompressionState, bucket: dist.GradBucket
    ) -> torch.futures.Future[torch.Tensor]:
        sizes.append(bucket.buffer().numel())
        return compress_hook(state, bucket)

    ddp, state = wrap(small_model(), TOPK, hook, **options)
    train(ddp, range(6))
    check_simulation(ddp, state, one_batch_a_rank(range(6)))
    return len(set(sizes))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"static_graph": True},
        {"find_unused_parameters": True},
        {"gradient_as_bucket_view": True},
        {"gradient_as_bucket_view": True, "static_graph": True},
        {"bucket_cap_mb": 0.0002},
        {"bucket_cap_mb": 25},
        {"flush_bytes": 1},
    ],
    ids=repr,
)
def test_law_4_residuals_survive_every_way_of_bucketing(ranks, world_size, options):
    """A simulation that knows no buckets finds the same parameters and residuals."""
    several = ranks.run(world_size, through_ddp, options)
    assert all((count > 1) == (options != {"bucket_cap_mb": 25}) for count in several)


def with_frozen_parameters() -> tuple[list[str], str]:
    model = small_model()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    before = weights(model[0])
    ddp, state = wrap(model, TOPK)
    train(ddp, range(4))
    assert weights(ddp.module[0]) == before
    return sorted(state.state_dict()["tensors"]["residual"]), weights(ddp)


def test_frozen_parameters_are_left_alone(ranks):
    (kept, one), (_, other) = ranks.run(2, with_frozen_parameters)
    assert kept == ["2.bias", "2.weight", "3.bias", "3.weight", "4.bias", "4.weight"]
    assert one == other


def accumulated_without_sync() -> None:
    ddp, state = wrap(small_model(), TOPK)
    rank = dist.get_rank()
    for step in range(5):
        ddp.zero_grad()
        with ddp.no_sync():
            loss(ddp, rank, 2 * step).backward()
        loss(ddp, rank, 2 * step + 1).backward()
        descend(ddp)
    batches = [[[2 * step, 2 * step + 1]] * dist.get_world_size() for step in range(5)]
    check_simulation(ddp, state, batches)


def test_law_4_gradients_accumulated_in_no_sync_arrive_at_the_next_sync(ranks):
    ranks.run(2, accumulated_without_sync)


def uneven_inputs(gradient_as_bucket_view: bool) -> None:
    """Rank r has 6 - r batches; ranks that joined send what is in their residuals."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    options = {"gradient_as_bucket_view": gradient_as_bucket_view}
    ddp, state = wrap(small_model(), TOPK, **options)
    with ddp.join():
        train(ddp, range(6 - rank))
    steps = range(6)
    batches = [[[step] if step < 6 - r else [] for r in range(world_size)] for step in steps]
    check_simulation(ddp, state, batches)


@pytest.mark.parametrize("gradient_as_bucket_view", [False, True])
@pytest.mark.parametrize("world_size", [2, 4])
def test_law_4_joined_ranks_take_part(ranks, world_size, gradient_as_bucket_view):
    ranks.run(world_size, uneven_inputs, gradient_as_bucket_view)


class Branches(nn.Module):
    """Two layers, of which every rank may leave out one."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.one, self.two = nn.Linear(12, 3), nn.Linear(12, 3)
        self.use = (True, True)

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x) for layer, on in zip((self.one, self.two), self.use, strict=True) if on]
        return sum(parts, torch.zeros(()))


def with_unused_branches(choices: list[list[tuple[bool, bool]]]) -> None:
    """What was applied to the weights and what is still kept is all that ever came."""
    ddp, state = wrap(Branches(), TOPK, find_unused_parameters=True)
    start = [p.detach().clone() for p in ddp.parameters()]
    came = [torch.zeros_like(p) for p in ddp.parameters()]
    for step, choice in enumerate(choices):
        ddp.module.use = choice[dist.get_rank()]
        plain = Branches()
        plain.load_state_dict(ddp.module.state_dict())
        plain.use = ddp.module.use
        loss(plain, dist.get_rank(), step).backward()
        for total, parameter in zip(came, plain.parameters(), strict=True):
            if parameter.grad is not None:
                total += parameter.grad
        backward(ddp, step)
        descend(ddp)
    kept = state.state_dict()["tensors"]["residual"]
    for (name, now), then, total in zip(ddp.module.named_parameters(), start, came, strict=True):
        rest = kept[name].view_as(total)
        for tensor in (total, rest):
            dist.all_reduce(tensor)
        applied = (then - now) / LEARNING_RATE
        mean = (total - rest) / dist.get_world_size()
        torch.testing.assert_close(applied, mean, rtol=1e-4, atol=1e-5)


BOTH, ONE, TWO = (True, True), (True, False), (False, True)


def test_law_4_a_parameter_may_be_unused_on_one_rank(ranks):
    choices = [[BOTH, BOTH], [ONE, BOTH], [TWO, ONE], [BOTH, TWO], [ONE, TWO], [BOTH, BOTH]]
    ranks.run(2, with_unused_branches, choices)


def test_law_4_a_parameter_may_be_unused_on_every_rank(ranks):
    """DDP then drops what the hook brings for it: nothing may be lost by that."""
    choices = [[BOTH, BOTH], [ONE, ONE], [ONE, ONE], [BOTH, BOTH], [TWO, TWO]]
    ranks.run(2, with_unused_branches, choices)


# ------------------------------------------------------------------------------------ checkpoints


def uninterrupted_and_resumed(row: Row, options: dict[str, Any]) -> None:
    ddp, state = wrap(small_model(), row, **options)
    train(ddp, range(4))
    file = io.BytesIO()
    torch.save({"model": ddp.module.state_dict(), "compression": state.state_dict()}, file)
    train(ddp, range(4, 9))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model = small_model()
    model.load_state_dict(saved["model"])
    resumed, fresh = wrap(model, row, **options)
    fresh.load_state_dict(saved["compression"])
    train(resumed, range(4, 9))
    assert weights(resumed) == weights(ddp)
    assert memory(fresh) == memory(state)
    assert fresh.stats.steps == state.stats.steps == 9


@pytest.mark.parametrize(
    "row", [row for row in ROWS.values() if row.scope != "bucket"],
    ids=[name for name, row in ROWS.items() if row.scope != "bucket"],
)  # fmt: skip
def test_law_4_a_resumed_run_equals_the_uninterrupted_one(ranks, row):
    """A fresh DDP begins with other buckets, so only scopes without buckets can."""
    ranks.run(2, uninterrupted_and_resumed, row, {})


@every_row
def test_law_4_resuming_with_steady_buckets_is_exact_in_every_scope(ranks, row):
    """With find_unused_parameters DDP never rebuilds its buckets."""
    ranks.run(2, uninterrupted_and_resumed, row, {"find_unused_parameters": True})


# --------------------------------------------------------------------------------- ways to attach


def ways_to_attach() -> list[str]:
    """Through `attach` by recipe and by name, and a state built before there is a group."""
    group = dist.group.WORLD
    model = small_model()
    dist.group.WORLD = None
    assert not dist.is_initialized()
    early = CompressionState(model, recipes.sbc(0.1))
    dist.group.WORLD = group
    by_hand = DistributedDataParallel(model)
    by_hand.register_comm_hook(early, compress_hook)
    by_recipe, by_name = (DistributedDataParallel(small_model()) for _ in range(2))
    attach(by_recipe, recipes.sbc(0.1))
    attach(by_name, "sbc", density=0.1)
    results = []
    for ddp in (by_hand, by_recipe, by_name):
        train(ddp, range(4))
        results.append(weights(ddp))
    return results


def test_all_ways_to_attach_are_one(ranks):
    results = ranks.run(2, ways_to_attach)
    assert len({digest for result in results for digest in result}) == 1


def attach_refuses() -> list[str]:
    model, messages = small_model(), []
    ddp = DistributedDataParallel(model)
    for call in (
        lambda: attach(model, "sbc", density=0.1),
        lambda: attach(ddp, recipes.sbc(0.1), density=0.1),
        lambda: attach(ddp, "sbc", value_dtype=torch.float16),
        lambda: attach(ddp, "huffman"),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        messages.append(str(caught.value))
    return messages


def test_attach_refuses_what_does_not_fit(ranks):
    for model, options, option, name in ranks.run(1, attach_refuses):
        assert "must be a DistributedDataParallel, got Sequential: wrap it first" in model
        assert "options ['density'] belong to a recipe given by name" in options
        assert "unexpected keyword argument 'value_dtype'" in option
        assert "must be one of dgc, hgc, majority_vote, sbc, sign, stc, topk; got 'huffman'" in name


def another_models_parameters() -> str:
    ddp = DistributedDataParallel(small_model())
    state = CompressionState(small_model(), recipes.sbc(0.1))
    ddp.register_comm_hook(state, compress_hook)
    with pytest.raises(ValueError, match="are not of the model") as caught:
        backward(ddp, 0)
    return str(caught.value)


def test_a_state_refuses_the_parameters_of_another_model(ranks):
    for message in ranks.run(2, another_models_parameters):
        assert "are not of the model that this state was made for" in message
