"""Nodes of several ranks: the laws of docs/design.md over two levels, and what is refused."""

import os
import socket
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from ddp_compress import CompressionState, FederatedDropout, PeerError, recipes, redistribute
from ddp_compress.message.arena import Arena
from ddp_compress.message.conv_kernels import ConvKernel
from ddp_compress.message.slices import range_lengths
from ddp_compress.step.node import mean_into
from ddp_compress.transport import shared_memory
from tests.distributed.nodes import on_nodes
from tests.distributed.soak import poisoned_steps, with_delays
from tests.distributed.test_checkpoints import (
    goes_on,
    one_life_and_three,
    relative,
    trained,
)
from tests.distributed.test_laws_on_ranks import (
    beside_all_reduce,
    grads_of_every_step,
    same_everywhere,
    with_grad_scaler,
)
from tests.distributed.training import (
    MANY_BUCKETS,
    backward,
    descend,
    digest,
    loss,
    memory,
    plain_grads,
    send_top,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import RECIPES, ROWS, Row, each, every_family

SOME = ("topk", "dgc-golomb", "vote-add-drop-sharded", "hgc", "stc")  # all: every_law.py
some_rows = each({name: RECIPES[name] for name in SOME})

# ------------------------------------------------------------------------------------ what it does


def simulate(density: float, steps: int) -> tuple[nn.Module, dict[int, list[Tensor]]]:
    """Top-k in every slice of every parameter, two nodes of two ranks, in plain torch.

    Returns:
        The trained model, and every rank's residuals.
    """
    model = small_model()
    residuals = {
        rank: [torch.zeros(range_lengths(p.numel(), 1, 2)[rank % 2]) for p in model.parameters()]
        for rank in range(4)
    }
    for step in range(steps):
        local = [plain_grads(model, rank, [step]) for rank in range(4)]
        means = []
        for number, parameter in enumerate(model.parameters()):
            sent = []
            for place in range(2):
                for node in (0, 2):
                    one, two = (local[node + other][number].flatten() for other in range(2))
                    lengths = range_lengths(parameter.numel(), 1, 2)
                    mine = ((one + two) / 2).split(lengths)[place]
                    residual = residuals[node + place][number]
                    residual += mine
                    sent.append(send_top(residual, density))
            first, second = ((sent[i] + sent[i + 1]) / 2 for i in (0, 2))
            means.append(torch.cat([first, second]).view_as(parameter))
        for parameter, mean in zip(model.parameters(), means, strict=True):
            parameter.grad = mean
        descend(model)
    return model, residuals


def beside_simulation() -> None:
    ddp, state = wrap(small_model(), Row(recipes.topk(0.1, "tensor")))
    train(ddp, range(6))
    model, residuals = simulate(0.1, 6)
    for ours, theirs in zip(ddp.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    kept = state.state_dict()["tensors"]["residual"]
    for (name, _), expected in zip(
        model.named_parameters(), residuals[dist.get_rank()], strict=True
    ):
        torch.testing.assert_close(kept[name], expected, rtol=1e-4, atol=1e-5)


def test_a_node_sends_its_mean_in_slices(ranks):
    ranks.run(4, on_nodes, 2, beside_simulation)


def test_half_types_are_summed_in_fp32_and_rounded_once():
    rows = [torch.tensor([value], dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0)]
    mean = torch.empty(1, dtype=torch.bfloat16)
    mean_into(mean, rows)
    assert mean == torch.tensor(258 / 3, dtype=torch.bfloat16)
    assert rows[0] + rows[1] == 256  # in their own type the ones would be lost


def test_whole_kernels_stay_whole():
    assert range_lengths(5 * 9, ConvKernel(9).block, 2) == [18, 27]
    assert range_lengths(4 * 18, ConvKernel(9, 2).block, 3) == [18, 18, 36]
    assert sum(range_lengths(3, 1, 8)) == 3


def counts() -> tuple[list[int], list[int], int, int]:
    model = nn.Linear(100, 80, bias=False)
    state = CompressionState(model, recipes.topk(0.01, value_dtype=torch.float32))
    for _ in range(3):
        state.reduce({"weight": torch.randn(80, 100)})
    stats, kept = state.stats, state.memory()["residual"]["weight"]
    return (
        [stats.elements, stats.nonzeros, stats.steps],
        [stats.within.sent_bytes, stats.within.received_bytes],
        stats.sent_bytes,
        len(kept),
    )


def test_levels_are_counted_apart(ranks):
    flat_counts, within, flat_sent, flat_kept = ranks.run(4, counts)[0]
    assert within == [0, 0]
    assert (flat_counts, flat_kept) == ([24000, 240, 3], 8000)
    for elements, within, sent, kept in ranks.run(4, on_nodes, 2, counts):
        assert elements == [12000, 120, 3]
        assert kept == 4000
        # Half a gradient to the other, and a slice back: some headers.
        assert 3 * 32000 <= min(within) <= max(within) <= 3 * 32000 + 1000
        assert sent < flat_sent / 4  # to one rank half as many entries as before to three


def without_shared_memory(fault: str) -> list[str]:
    """Rank 2 has none, or finds another process's in the place of rank 3's."""
    unlucky = dist.get_rank() == 2
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if unlucky and fault == "none":
            patch.setattr(os, "posix_fallocate", no_memory)
        if unlucky and fault == "another":
            patch.setattr(shared_memory, "_opened", lambda place: opened(bytes(8) + place[8:]))
        digests = grads_of_every_step(ROWS["topk"])
    assert len(told) == (dist.get_rank() >= 2), [str(each.message) for each in told]
    if told:
        assert "share no memory" in str(told[0].message)
    return digests


opened = shared_memory._opened


def no_memory(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fault", ["none", "another"])
def test_ranks_that_share_no_memory_are_told_and_go_on(ranks, fault):
    """With the same bits; the other node has memory to share."""
    told = ranks.run(4, on_nodes, 2, without_shared_memory, fault)
    assert told == ranks.run(4, on_nodes, 2, grads_of_every_step, ROWS["topk"])


# -------------------------------------------------------------------------------------------- laws


@every_family
def test_law_2_ranks_agree_bit_for_bit_and_so_do_runs(ranks, row):
    first = same_everywhere(ranks.run(4, on_nodes, 2, grads_of_every_step, row))
    assert first == same_everywhere(ranks.run(4, on_nodes, 2, grads_of_every_step, row))
    assert len(set(first)) == len(first)


@some_rows
def test_one_rank_a_node_is_as_without_nodes(ranks, row):
    assert ranks.run(2, on_nodes, 1, grads_of_every_step, row) == ranks.run(
        2, grads_of_every_step, row
    )


@pytest.mark.parametrize("ranks_per_node", [1, 3])
def test_three_ranks_agree(ranks, ranks_per_node):
    """A mean of three is rounded, but everywhere alike."""
    row = ROWS["topk"]
    same_everywhere(ranks.run(3, on_nodes, ranks_per_node, grads_of_every_step, row))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_law_3_density_1_equals_all_reduce(ranks, dtype):
    ranks.run(4, on_nodes, 2, beside_all_reduce, Row(recipes.topk(1.0)), dtype)


def test_law_3_uncompressed_parameters_equal_all_reduce(ranks):
    row = Row(recipes.sbc(0.01), min_numel=10**6)
    ranks.run(4, on_nodes, 2, beside_all_reduce, row, torch.float32)


@some_rows
def test_law_4_a_resumed_run_equals_the_uninterrupted_one(ranks, row):
    assert len(set(ranks.run(4, on_nodes, 2, one_life_and_three, row, {}))) == 1


@some_rows
def test_law_7_delays_change_nothing(ranks, row):
    slow = same_everywhere(ranks.run(4, on_nodes, 2, with_delays, row, 4, 0.005))
    assert slow == same_everywhere(ranks.run(4, on_nodes, 2, with_delays, row, 4, 0.0))


@every_family
def test_law_8_a_poisoned_step_never_was(ranks, row):
    same_everywhere(ranks.run(4, on_nodes, 2, poisoned_steps, row, 4))


def test_law_8_grad_scaler_skips_the_step_on_every_rank(ranks):
    scales, _, aborted = same_everywhere(ranks.run(4, on_nodes, 2, with_grad_scaler))
    assert (scales, aborted) == ([1024.0] * 3 + [512.0] * 3, 1)


def with_scales_of(scales: list[float]) -> str:
    """Every rank has its own loss scale; DDP's gradients are of the scaled loss."""
    ddp, state = wrap(small_model(), ROWS["topk"])
    scaler = torch.amp.GradScaler("cpu", init_scale=scales[dist.get_rank()])
    state.use_scaler(scaler)
    for number in range(4):
        ddp.zero_grad()
        scaler.scale(loss(ddp, dist.get_rank(), number)).backward()
        for parameter in ddp.parameters():
            assert parameter.grad is not None
            parameter.grad /= scaler.get_scale()
        descend(ddp)
    return weights(ddp)


def test_every_rank_has_its_own_loss_scale(ranks):
    """Powers of two change no bit; others are told."""
    told = ranks.run(4, on_nodes, 2, with_scales_of, [1024.0, 8.0, 1.0, 64.0])
    assert told == ranks.run(4, on_nodes, 2, with_scales_of, [1.0] * 4)
    outcomes = ranks.outcomes(4, on_nodes, 2, with_scales_of, [1024.0, 1000.0, 1024.0, 1000.0])
    for outcome in outcomes:
        assert isinstance(outcome.error, PeerError)
        assert "rank 1 differs from rank 0" in str(outcome.error) or "rank 3 differs from" in str(
            outcome.error
        )


def dropped_units() -> str:
    network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    dropout = FederatedDropout(network, rate=0.5)
    state = CompressionState(dropout.sub_model, recipes.topk(0.5))
    with pytest.raises(ValueError, match="make the state without it") as caught:
        dropout.attach(state)
    return str(caught.value)


def test_sub_models_want_whole_tensors(ranks):
    ranks.run(2, on_nodes, 2, dropped_units)


# ------------------------------------------------------------------------------------- checkpoints


def mean_over_nodes(checkpoints: Sequence[dict[str, Any]], ranks_per_node: int) -> Tensor:
    """Of whole residuals, which a node's ranks have in slices."""
    nodes = [
        checkpoints[first : first + ranks_per_node]
        for first in range(0, len(checkpoints), ranks_per_node)
    ]
    kept = [[saved["tensors"]["residual"] for saved in node] for node in nodes]
    names = sorted(kept[0][0])
    wholes = [torch.cat([each[name] for name in names for each in node]) for node in kept]
    return torch.stack(wholes).double().mean(0)


def of_all(checkpoints: Sequence[dict[str, Any]], ranks: int, per_node: int) -> list[Any]:
    return [redistribute(checkpoints, rank, ranks, per_node) for rank in range(ranks)]


@some_rows
def test_checkpoints_go_on_with_other_nodes(ranks, row):
    """2 nodes of 2 -> 4 of 1 -> 1 of 2 -> 2 of 2, as they are saved and loaded by states."""
    told = ranks.run(4, on_nodes, 2, trained, row)
    model, saved = told[0][0], [checkpoint for _, checkpoint in told]
    expected = mean_over_nodes(saved, 2)
    assert of_all(saved, 4, 2) == saved
    for ranks_now, per_node in ((4, 1), (2, 2), (4, 2)):
        saved = of_all(saved, ranks_now, per_node)
        if expected.any():
            assert relative(mean_over_nodes(saved, per_node), expected) <= 1e-6
        _, after, ends = zip(
            *ranks.run(ranks_now, on_nodes, per_node, goes_on, row, model, saved), strict=True
        )
        assert len(set(ends)) == 1
        assert [each["saved_by"] for each in after] == [each["saved_by"] for each in saved]


def loaded_in_other_nodes() -> list[str]:
    ddp, state = wrap(small_model(), ROWS["topk"])
    train(ddp, range(2))
    saved = state.state_dict()
    told = []
    for change in ({"part": None}, {"part": ["slice", 1 - saved["part"][1], 2]}):
        ddp, other = wrap(small_model(), ROWS["topk"])
        try:
            other.load_state_dict(saved | change)
            train(ddp, [2])
        except (ValueError, PeerError) as error:
            told.append(str(error))
    return told


def test_a_checkpoint_of_another_slice_is_refused(ranks):
    for rank, (whole, other) in enumerate(ranks.run(4, on_nodes, 2, loaded_in_other_nodes)):
        assert "shape" in whole
        assert "see ddp_compress.redistribute" in other or "shape" in other, rank


# ---------------------------------------------------------------------------------- who is in them


def of_node(within: object) -> tuple[Any, ...]:
    state = CompressionState(nn.Linear(2, 2), recipes.topk(1.0), within=within)
    given = {"weight": torch.full((4,), float(dist.get_rank()))}
    mean = state.reduce(given)["weight"]
    return state.state_dict()["part"], state.state_dict()["saved_by"], mean.tolist()


def found(environment: dict[str, str], host: str) -> tuple[Any, ...]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(socket, "gethostname", lambda: host)
        return of_node("node")


def torchrun(per_node: int) -> dict[str, str]:
    rank = dist.get_rank()
    local = {"LOCAL_RANK": str(rank % per_node), "LOCAL_WORLD_SIZE": str(per_node)}
    return {"RANK": str(rank), **local}


TWO_BY_TWO = [
    (["slice", place, 2], [node, 2], [1.5] * 4) for node in range(2) for place in range(2)
]


def by_torchrun() -> tuple[Any, ...]:
    return found(torchrun(2), f"host{dist.get_rank() // 2}")


def by_host_names() -> tuple[Any, ...]:
    return found({}, f"host{dist.get_rank() // 2}")


def by_mesh() -> tuple[Any, ...]:
    return of_node(init_device_mesh("cpu", (2, 2), mesh_dim_names=("node", "gpu"))["gpu"])


@pytest.mark.parametrize("how", [by_torchrun, by_host_names, by_mesh])
def test_nodes_are_found(ranks, how):
    assert ranks.run(4, how) == TWO_BY_TWO


def by_a_mesh_across() -> tuple[Any, ...]:
    """Its nodes are ranks 0 and 2, 1 and 3."""
    return of_node(init_device_mesh("cpu", (2, 2), mesh_dim_names=("gpu", "node"))["gpu"])


def test_ranks_of_a_node_need_be_no_neighbours(ranks):
    told = ranks.run(4, by_a_mesh_across)
    assert [part for part, *_ in told] == [["slice", place, 2] for place in (0, 0, 1, 1)]
    assert [place for _, place, _ in told] == [[node, 2] for node in (0, 1, 0, 1)]
    assert {tuple(mean) for *_, mean in told} == {(1.5,) * 4}


def refused(how: str) -> str:
    rank = dist.get_rank()
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    uneven = [dist.new_group([0, 1, 2]), dist.new_group([3])]
    within = {
        "on several hosts": lambda: found(torchrun(2), f"host{rank}"),
        "uneven": lambda: of_node(uneven[rank // 3]),
        "uneven hosts": lambda: found({}, f"host{rank // 3}"),
        "no partition": lambda: of_node(halves[0] if rank < 3 else halves[1]),
        "in none": lambda: of_node(halves[0]),
        "one flat": lambda: of_node(halves[rank // 2] if rank else None),
        "they differ": lambda: found(torchrun(2 if rank else 4), "host"),
    }[how]
    with pytest.raises(PeerError) as caught:
        within()
    return str(caught.value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            "on several hosts",
            "ranks [0, 1] were started as one node, but are on hosts host0, host1",
        ),
        ("uneven", "nodes must be equally large, but are of ranks [[0, 1, 2], [3]]"),
        ("uneven hosts", "nodes must be equally large, but are of ranks [[0, 1, 2], [3]]"),
        ("no partition", "a group that this rank is not in"),
        ("in none", "a group that this rank is not in"),
        ("one flat", "rank 1 differs from rank 0"),
        (
            "they differ",
            "rank 0 says that its node is of ranks [0, 1, 2, 3], but rank 1 says [0, 1]",
        ),
    ],
)
def test_what_are_no_nodes_is_refused_on_every_rank(ranks, how, words):
    told = same_everywhere(ranks.run(4, refused, how))
    assert words in told
    if how != "one flat":
        assert "within" in told


def on_one_host() -> None:
    with pytest.warns(UserWarning, match="several nodes are on host here"):
        assert found(torchrun(2), "here") == TWO_BY_TWO[dist.get_rank()]


def test_several_nodes_on_a_host_are_told(ranks):
    ranks.run(4, on_one_host)


@pytest.mark.parametrize(
    ("within", "error", "words"),
    [
        ("host", ValueError, 'within must be "node", a process group, a mesh'),
        (2, TypeError, "within must be .* got int"),
    ],
)
def test_what_can_be_no_node_is_refused_at_once(within, error, words):
    with pytest.raises(error, match=words):
        CompressionState(nn.Linear(2, 2), recipes.topk(0.5), within=within)


def a_whole_mesh() -> str:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("node", "gpu"))
    with pytest.raises(ValueError, match="of 2 dimensions") as caught:
        CompressionState(nn.Linear(2, 2), recipes.topk(0.5), within=mesh)
    return str(caught.value)


def test_a_mesh_of_two_dimensions_is_refused(ranks):
    assert all("within=mesh['gpu']" in told for told in ranks.run(4, a_whole_mesh))


# ------------------------------------------------------------------------------------------ errors


def told_by_all(fault: str, row: Row) -> str:
    """Rank 2, of the second node, fails in its second step."""
    state = CompressionState(small_model(), row.recipe, flush_bytes=1)
    generator = torch.Generator().manual_seed(dist.get_rank())
    given = {
        name: torch.randn(p.shape, generator=generator)
        for name, p in small_model().named_parameters()
    }
    state.reduce(given)
    before, step = memory(state), state.step
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 2 and fault == "message":
            patch.setattr("ddp_compress.step.transaction.Message", fails)
        if dist.get_rank() == 2 and fault == "node":
            patch.setattr("ddp_compress.step.node.slices_of", fails)
        if dist.get_rank() == 2 and fault == "step":
            state.step += 1
        with pytest.raises((PeerError, RuntimeError)) as caught:
            state.reduce(given)
    state.step = step
    assert memory(state) == before
    mean = state.reduce(given)  # and goes on
    return f"{caught.value}, {digest(mean.values())}"


def a_message_fails(row: Row, call: int) -> tuple[str, int]:
    """Of several in a step, on rank 1; those of the other place have others under way."""
    ddp, state = wrap(small_model(), row, flush_bytes=1, bucket_cap_mb=MANY_BUCKETS)
    train(ddp, range(3))
    real, calls = Arena.reserve, []

    def failing(arena: Arena, slots: Any) -> None:
        calls.append(1)
        if dist.get_rank() == 1 and len(calls) == call:
            raise MemoryError("no room for the sums")
        real(arena, slots)

    before = memory(state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arena, "reserve", failing)
        with pytest.raises((PeerError, MemoryError)) as caught:
            backward(ddp, 3)
    assert memory(state) == before
    dist.barrier()  # nothing is left under way
    mean = state.reduce({"0.weight": torch.full((24, 12), float(dist.get_rank()))})
    return str(caught.value), int(mean["0.weight"].count_nonzero())


@pytest.mark.parametrize("call", [1, 3, 4])
@pytest.mark.parametrize("row", [ROWS["topk"], ROWS["vote-sharded"]], ids=["topk", "vote"])
def test_a_failure_in_one_of_several_messages_is_told_to_all(ranks, row, call):
    told = ranks.run(4, on_nodes, 2, a_message_fails, row, call)
    assert {words for words, _ in told} == {"rank 1 failed: MemoryError: no room for the sums"}
    assert told[0][1] > 0


def fails(*_: object) -> None:
    raise RuntimeError("none left")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("message", "rank 2 failed: RuntimeError: none left"),
        ("node", "rank 2 failed: RuntimeError: none left"),
        ("step", "ranks must compress alike, but rank 3 differs from rank 2"),
    ],
)
@pytest.mark.parametrize("row", [ROWS["topk"], ROWS["vote-sharded"]], ids=["topk", "vote"])
def test_a_failure_is_told_to_every_rank_of_every_node(ranks, fault, words, row):
    told = ranks.run(4, on_nodes, 2, told_by_all, fault, row)
    assert all(words in each for each in told)
    assert len({each.rpartition(", ")[2] for each in told}) == 1


def dies() -> str:
    ddp, _ = wrap(small_model(), ROWS["topk"])
    train(ddp, range(3))
    if dist.get_rank() == 3:
        os._exit(7)
    with pytest.raises(PeerError) as caught:
        train(ddp, [3])
    return str(caught.value)


def test_the_death_of_a_rank_ends_those_of_all_nodes(ranks):
    *others, dead = ranks.outcomes(4, on_nodes, 2, dies)
    assert isinstance(dead.error, ChildProcessError)
    assert all("does not answer" in outcome.value for outcome in others)


def a_commit_fails() -> tuple[str, bool]:
    """On rank 1 alone: its node hears in the step, the others in the next."""
    ddp, state = wrap(small_model(), ROWS["topk"])
    train(ddp, [0])
    before = memory(state)
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setattr("ddp_compress.step.transaction._commit_chunks", fails)
        try:
            backward(ddp, 1)
        except (PeerError, RuntimeError) as error:
            return str(error), memory(state) == before
    with pytest.raises(PeerError):
        backward(ddp, 2)
    return "", state.step == 2


def test_a_rank_that_cannot_commit_keeps_nobody_waiting(ranks):
    told = [outcome.value for outcome in ranks.outcomes(4, on_nodes, 2, a_commit_fails)]
    assert [kept for _, kept in told] == [True] * 4
    assert told[1][0] == "none left"
    assert "does not answer" in told[0][0]
