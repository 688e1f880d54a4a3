"""Law 4: a resumed run equals the uninterrupted one. Checkpoints in DCP, and of other ranks."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import (
    CompressionState,
    LocalUpdates,
    PeerError,
    PerRank,
    exponential_warmup,
    redistribute,
)
from ddp_compress.recipes import majority_vote
from tests.distributed.training import (
    MANY_BUCKETS,
    backward,
    descend,
    digest,
    grads,
    memory,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import ROWS, Row, every_family, every_keeping_recipe, every_row

Checkpoint = dict[str, Any]


# ------------------------------------------------------------------------ resumed, uninterrupted


def lives(row: Row, options: dict[str, Any], ends: Sequence[int]) -> Any:
    """Training in one life or several, each from the checkpoint of the one before.

    Returns:
        The gradients of every step, as digests, and what there is in the end.
    """
    told, file = [], io.BytesIO()
    for begin, end in itertools.pairwise((0, *ends)):
        model = small_model()
        ddp, state = wrap(model, row, flush_bytes=100, bucket_cap_mb=MANY_BUCKETS, **options)
        if begin:
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            model.load_state_dict(saved["model"])
            state.load_state_dict(saved["compression"])
        for number in range(begin, end):
            backward(ddp, number)
            told.append(digest(grads(ddp)))
            descend(ddp)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "compression": state.state_dict()}, file)
    saved = state.state_dict()
    return told, weights(ddp), memory(state), saved["buckets"], saved["density"]


def one_life_and_three(row: Row, options: dict[str, Any]) -> str:
    """The second ends when DDP has not yet rebuilt its buckets."""
    once = lives(row, options, [7])
    assert lives(row, options, [3, 4, 7]) == once
    return once[1]


@every_row
def test_law_4_a_resumed_run_equals_the_uninterrupted_one(ranks, row):
    """Bit for bit, with many buckets and messages."""
    assert len(set(ranks.run(2, one_life_and_three, row, {}))) == 1


@every_family
@pytest.mark.parametrize("option", ["static_graph", "find_unused_parameters"])
def test_law_4_holds_in_other_modes_of_ddp(ranks, row, option):
    assert len(set(ranks.run(2, one_life_and_three, row, {option: True}))) == 1


def test_messages_end_where_they_would_have(ranks):
    """The mask is a message's, and where that ends depends on the step before."""
    vote = majority_vote(exponential_warmup(0.02, steps=7, start=0.25), scope="tensor")
    ranks.run(3, one_life_and_three, Row(vote), {})


def with_other_buckets_on_one_rank() -> str:
    row = ROWS["sbc-golomb"]
    ddp, state = wrap(small_model(), row, flush_bytes=1, bucket_cap_mb=MANY_BUCKETS)
    train(ddp, range(3))
    saved = state.state_dict()
    if dist.get_rank() == 1:
        saved["buckets"].reverse()
    ddp, fresh = wrap(small_model(), row, flush_bytes=1, bucket_cap_mb=MANY_BUCKETS)
    fresh.load_state_dict(saved)
    with pytest.raises(PeerError) as caught:
        train(ddp, [3])
    return str(caught.value)


def test_ranks_that_would_go_on_in_other_buckets_are_told(ranks):
    for message in ranks.run(2, with_other_buckets_on_one_rank):
        assert "rank 1 differs from rank 0" in message
        assert "loaded buckets #" in message


# ------------------------------------------------------------------ torch.distributed.checkpoint


def through_dcp(row: Row, folder: Path) -> str:
    ddp, state = wrap(small_model(), row)
    train(ddp, range(4))
    dcp.save({"model": ddp.module, "compression": PerRank(state)}, checkpoint_id=folder)
    train(ddp, range(4, 7))

    resumed, fresh = wrap(small_model(), row)
    dcp.load({"model": resumed.module, "compression": PerRank(fresh)}, checkpoint_id=folder)
    assert fresh.stats.steps == 4
    train(resumed, range(4, 7))
    assert weights(resumed) == weights(ddp)
    assert memory(fresh) == memory(state)
    return "".join(memory(state).values())


@every_family
def test_in_dcp_every_rank_keeps_its_own(ranks, row, tmp_path):
    kept = ranks.run(3, through_dcp, row, tmp_path)
    assert len(set(kept)) == 3


def local_updates_in_dcp(folder: Path) -> str:
    """In the middle of a period, when weights and optimizers differ from rank to rank."""

    def fresh() -> tuple[DistributedDataParallel, LocalUpdates, dict[str, PerRank]]:
        ddp = DistributedDataParallel(small_model())
        state = CompressionState(ddp, ROWS["sbc"].recipe)
        sgd = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
        optimizer = LocalUpdates(sgd, ddp, state, period=3)
        return (
            ddp,
            optimizer,
            {
                "model": PerRank(ddp.module),
                "optimizer": PerRank(optimizer),
                "compression": PerRank(state),
            },
        )

    def go_on(ddp: DistributedDataParallel, optimizer: LocalUpdates, numbers: range) -> None:
        for number in numbers:
            backward(ddp, number)
            optimizer.step()

    ddp, optimizer, parts = fresh()
    go_on(ddp, optimizer, range(5))
    dcp.save(parts, checkpoint_id=folder)
    saved = weights(ddp)
    go_on(ddp, optimizer, range(5, 10))

    resumed, twin, parts = fresh()
    dcp.load(parts, checkpoint_id=folder)
    assert weights(resumed) == saved
    go_on(resumed, twin, range(5, 10))
    assert weights(resumed) == weights(ddp)
    return saved


def test_local_updates_in_dcp(ranks, tmp_path):
    one, two = ranks.run(2, local_updates_in_dcp, tmp_path)
    assert one != two


def without_per_rank(folder: Path) -> None:
    """Ranks save parts of it each; a fresh state has no tensors to load into, another has."""
    row = ROWS["topk"]
    ddp, state = wrap(small_model(), row)
    train(ddp, range(2))
    dcp.save({"compression": state}, checkpoint_id=folder)
    _, fresh = wrap(small_model(), row)
    before = memory(state)
    for each in (fresh, state):
        with pytest.raises(ValueError, match="PerRank"):
            dcp.load({"compression": each}, checkpoint_id=folder)
    assert fresh.step == 0
    assert memory(state) == before


def test_a_state_that_dcp_took_for_replicated_is_refused(ranks, tmp_path):
    ranks.run(2, without_per_rank, tmp_path)


def in_dcp_of_fewer(folder: Path, world_size: int) -> float:
    """All that was saved, and from it this rank's share."""
    _, state = wrap(small_model(), ROWS["topk"])
    with pytest.raises(CheckpointException, match=f"rank 0 of {dist.get_world_size()}"):
        dcp.load({"compression": PerRank(state)}, checkpoint_id=folder)
    names = [f"rank {rank} of {world_size}" for rank in range(world_size)]
    saved: dict[str, Any] = {"compression": dict.fromkeys(names)}
    dcp.load(saved, checkpoint_id=folder)
    checkpoints = [saved["compression"][name][0] for name in names]
    state.load_state_dict(redistribute(checkpoints, dist.get_rank(), dist.get_world_size()))
    return float(state.state_dict()["tensors"]["residual"]["0.weight"].sum())


def saved_in_dcp(folder: Path) -> float:
    ddp, state = wrap(small_model(), ROWS["topk"])
    train(ddp, range(3))
    dcp.save({"compression": PerRank(state)}, checkpoint_id=folder)
    return float(state.state_dict()["tensors"]["residual"]["0.weight"].sum())


def test_checkpoints_in_dcp_are_redistributed(ranks, tmp_path):
    before = ranks.run(3, saved_in_dcp, tmp_path)
    after = ranks.run(2, in_dcp_of_fewer, tmp_path, 3)
    assert sum(after) / 2 == pytest.approx(sum(before) / 3, rel=1e-5)


# ------------------------------------------------------------------------ another number of ranks


def trained(row: Row) -> tuple[Checkpoint, Checkpoint]:
    ddp, state = wrap(small_model(), row)
    train(ddp, range(5))
    return ddp.module.state_dict(), state.state_dict()


def mean(checkpoints: list[Checkpoint], slot: str) -> Tensor:
    """Of all parameters' tensors, over ranks, in fp64."""
    return torch.stack([flat(saved, slot) for saved in checkpoints]).mean(0)


def flat(saved: Checkpoint, slot: str) -> Tensor:
    by_name = saved["tensors"].get(slot) or {
        name: torch.zeros_like(tensor) for name, tensor in saved["tensors"]["residual"].items()
    }
    return torch.cat([by_name[name] for name in sorted(by_name)]).double()


def owed(checkpoints: list[Checkpoint]) -> Tensor:
    """All that is not yet in the model."""
    second = len(checkpoints) * mean(checkpoints, "owner_residual")
    return mean(checkpoints, "residual") + second


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def of_all(checkpoints: list[Checkpoint], world_size: int) -> list[Checkpoint]:
    return [redistribute(checkpoints, rank, world_size) for rank in range(world_size)]


HALF = 4e-3  # where the mean itself is taken in 16 bits, it is rounded


def goes_on(row: Row, model: Checkpoint, given: list[Checkpoint]) -> tuple[Any, ...]:
    """First a step of zero gradients: what it brings is what is then owed no more."""
    ddp, state = wrap(small_model(), row)
    ddp.module.load_state_dict(model)
    state.load_state_dict(given[dist.get_rank()])
    names = sorted(given[0]["tensors"]["residual"])
    zeros = {name: torch.zeros_like(ddp.module.get_parameter(name)) for name in names}
    sent = state.reduce(zeros)
    brought = torch.cat([sent[name].flatten() for name in names]).double()
    saved = state.state_dict()
    train(ddp, range(5, 9))
    assert state.step == 10
    assert state.stats.steps == 10
    return brought, saved, weights(ddp)


@every_keeping_recipe
def test_training_goes_on_with_fewer_ranks(ranks, row):
    """The mean of the residuals stays, 4 -> 3 -> 4, and nothing is lost by going on."""
    (model, *_), four = zip(*ranks.run(4, trained, row), strict=True)
    three = of_all(four, 3)
    for slot in ("residual", "momentum"):
        if mean(four, slot).any():
            for changed in (three, of_all(three, 4)):
                assert relative(mean(changed, slot), mean(four, slot)) <= 1e-6
    assert relative(owed(three), owed(four)) <= 1e-6
    assert relative(owed(of_all(three, 4)), owed(four)) <= 1e-6

    brought, after, weights = zip(*ranks.run(3, goes_on, row, model, three), strict=True)
    assert len(set(weights)) == 1
    expected = owed(four) + row.momentum * mean(four, "momentum")
    assert brought[0].any()
    assert relative(brought[0] + owed(after), expected) <= HALF


@every_family
def test_training_goes_on_with_more_ranks(ranks, row):
    (model, *_), two = zip(*ranks.run(2, trained, row), strict=True)
    brought, after, weights = zip(*ranks.run(3, goes_on, row, model, of_all(two, 3)), strict=True)
    assert len(set(weights)) == 1
    expected = owed(two) + row.momentum * mean(two, "momentum")
    assert relative(brought[0] + owed(after), expected) <= HALF


def loaded_on_another_rank(row: Row) -> str:
    ddp, state = wrap(small_model(), row)
    train(ddp, range(2))
    ddp, other = wrap(small_model(), row)
    other.load_state_dict(state.state_dict() | {"saved_by": [dist.get_rank(), 3]})
    before = memory(other)
    with pytest.raises(PeerError) as caught:
        train(ddp, [2])
    assert memory(other) == before
    return str(caught.value)


@every_family
def test_a_checkpoint_of_another_rank_is_an_error_on_every_rank(ranks, row):
    for message in ranks.run(2, loaded_on_another_rank, row):
        assert "checkpoint was saved by rank 0 of 3, this is rank 0 of 2" in message
        assert "redistribute" in message
