"""Checkpoints of W ranks as those of another number: the rules, and what is refused."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddp_compress import CompressionState, redistribute
from ddp_compress.checkpoints.checkpoint import checksum
from tests.table import ROWS, every_row

SIZES = {"weight": 30, "bias": 2}


def checkpoints(row, world_size: int) -> list[dict[str, Any]]:
    """As W ranks may have saved them, with numbers of their own in every tensor."""
    kept = row.recipe.tensors
    model = nn.Linear(15, 2)
    every = []
    for rank in range(world_size):
        generator = torch.Generator().manual_seed(rank)
        state = CompressionState(model, row.recipe)
        saved = state.state_dict()
        saved["tensors"] = {
            slot: {name: numbers(slot, n, rank, world_size, generator) for name, n in SIZES.items()}
            for slot in kept
        }
        saved |= {"step": 7, "saved_by": [rank, world_size], "buckets": [["bias"], ["weight"]]}
        saved["stats"] |= {"steps": 7, "sent_bytes": 100 + rank}
        saved["checksum"] = checksum(saved["tensors"])
        every.append(saved)
    return every


def numbers(slot: str, numel: int, rank: int, world_size: int, generator) -> Tensor:
    random = torch.randn(numel, generator=generator)
    if slot == "vote":
        return (random > 0).to(torch.uint8)
    if slot == "average":  # alike on all ranks
        return torch.arange(numel).float()
    if slot == "owner_residual":
        start, end = numel * rank // world_size, numel * (rank + 1) // world_size
        random[:start] = random[end:] = 0
    return random


def of_all(every: list[dict[str, Any]], world_size: int) -> list[dict[str, Any]]:
    return [redistribute(every, rank, world_size) for rank in range(world_size)]


def stacked(every: list[dict[str, Any]], slot: str, name: str) -> Tensor:
    return torch.stack([saved["tensors"][slot][name] for saved in every]).double()


@every_row
@pytest.mark.parametrize(("old", "new"), [(4, 3), (3, 4), (4, 1), (1, 4), (2, 5)])
def test_every_tensor_follows_its_rule(row, old, new):
    before = checkpoints(row, old)
    untouched = copy.deepcopy(before)
    after = of_all(before, new)
    for saved in after:
        CompressionState(nn.Linear(15, 2), row.recipe).load_state_dict(saved)
    for slot in row.recipe.tensors:
        for name, numel in SIZES.items():
            then, now = stacked(before, slot, name), stacked(after, slot, name)
            assert torch.equal(then, stacked(untouched, slot, name))
            if slot == "owner_residual":
                for rank, mine in enumerate(now):
                    start, end = numel * rank // new, numel * (rank + 1) // new
                    assert torch.equal(mine[start:end], then.sum(0)[start:end])
                    assert not mine[:start].any()
                    assert not mine[end:].any()
            elif slot == "vote":
                assert not now.any()
            elif slot == "average":
                assert torch.equal(now, then[:1].expand(new, -1))
            else:
                assert slot in ("residual", "momentum")
                error = (now.mean(0) - then.mean(0)).norm() / then.mean(0).norm()
                assert error <= 1e-6


@every_row
def test_as_many_ranks_get_their_own_back(row):
    before = checkpoints(row, 3)
    for old, new in zip(before, of_all(before, 3), strict=True):
        files = [io.BytesIO(), io.BytesIO()]
        torch.save(old, files[0])
        torch.save(new, files[1])
        assert files[0].getvalue() == files[1].getvalue()


def test_the_rest_of_a_checkpoint_says_whose_it_is():
    after = of_all(checkpoints(ROWS["dgc"], 2), 3)
    assert [saved["saved_by"] for saved in after] == [[0, 3], [1, 3], [2, 3]]
    assert [saved["stats"]["sent_bytes"] for saved in after] == [100, 101, 100]
    assert {saved["step"] for saved in after} == {7}
    assert all(saved["buckets"] == [["bias"], ["weight"]] for saved in after)
    assert after[2]["tensors"]["residual"]["weight"].count_nonzero() == 0


def test_what_never_took_a_step_is_redistributed_too():
    fresh = CompressionState(nn.Linear(3, 1), ROWS["stc"].recipe).state_dict()
    assert redistribute([fresh, fresh], 1, 3)["saved_by"] == [1, 3]


def of_format_3(saved: dict[str, Any]) -> dict[str, Any]:
    """As an older version saved it, with a checksum of another kind."""
    return saved | {"format": 3, "checksum": 1}


def test_checkpoints_of_format_3_are_redistributed_too():
    every = checkpoints(ROWS["dgc"], 3)
    older = [of_format_3(every[0]), every[1], of_format_3(every[2])]
    assert of_all(older, 3) == older
    for saved, expected in zip(of_all(older, 2), of_all(every, 2), strict=True):
        assert (saved["format"], saved["checksum"]) == (5, expected["checksum"])
        CompressionState(nn.Linear(15, 2), ROWS["dgc"].recipe).load_state_dict(saved)


def damaged(path: list[Any], value: object):
    def apply(every):
        for key in path[:-1]:
            every = every[key]
        every[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damaged([2, "step"], 8), "agree in step: rank 0 has 7, rank 2 has 8"),
        (damaged([2, "density"], 0.5), "agree in density: rank 0 has None, rank 2 has 0.5"),
        (damaged([1, "buckets"], [["weight", "bias"]]), "agree in buckets: rank 0 has #.*, rank 1"),
        (damaged([1, "recipe"], "sbc"), "agree in recipe: rank 0 has dgc, rank 1 has sbc"),
        (lambda every: every.reverse(), "number 0 of 3 was saved by rank 2 of 3"),
        (lambda every: every.pop(), "number 0 of 2 was saved by rank 0 of 3"),
        (lambda every: every.clear(), "checkpoints must be those of all old ranks, got none"),
        (damaged([1], None), "rank 1: checkpoint is a NoneType, expected a mapping"),
        (damaged([1, "tensors", "memory"], {}), r"rank 1: .* unknown tensors \['memory'\]"),
        (
            damaged([2, "tensors", "momentum", "weight"], torch.zeros(29)),
            r"in momentum of weight: rank 0 has \[30\] torch.float32, rank 2 has \[29\] torch",
        ),
        (
            lambda every: every[1]["tensors"]["residual"].pop("bias"),
            r"agree in residual of bias: rank 0 has \[2\] torch.float32, rank 1 has None",
        ),
        (
            damaged([2, "tensors", "momentum", "weight"], torch.full((30,), torch.inf)),
            "rank 2: checkpoint's momentum of weight is not finite",
        ),
        (damaged([1, "parameters"], 5), "agree in parameters: rank 0 has .*, rank 1 has 5"),
        (
            lambda every: every[2]["tensors"]["residual"]["weight"].mul_(2),
            "rank 2: checkpoint is damaged",
        ),
    ],
)
def test_checkpoints_that_do_not_belong_together_are_refused(damage, words):
    every = checkpoints(ROWS["dgc"], 3)
    damage(every)
    with pytest.raises(ValueError, match=words):
        redistribute(every, 0, 2)


@pytest.mark.parametrize(
    ("rank", "world_size", "error", "words"),
    [
        (2, 2, ValueError, "rank must be less than world_size 2, got 2"),
        (-1, 2, ValueError, "rank must be 0 or more, got -1"),
        (0, 0, ValueError, "world_size must be 1 or more, got 0"),
        (0.0, 2, TypeError, "rank must be an int, got 0.0"),
    ],
)
def test_a_rank_must_be_one_of_the_new(rank, world_size, error, words):
    with pytest.raises(error, match=words):
        redistribute(checkpoints(ROWS["topk"], 2), rank, world_size)
