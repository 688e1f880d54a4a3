"""The laws of docs/design.md on one rank, where every number is in sight."""

import copy
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from ddp_compress import CompressionState, Recipe, Schedule, exponential_warmup, ops, recipes
from ddp_compress.exchange import Sharded
from ddp_compress.message.layout import Layout
from ddp_compress.ops import reference
from ddp_compress.quantize import Rotated
from ddp_compress.schedules import density_at
from ddp_compress.select import All
from ddp_compress.transport.comm import Comm
from tests.plain import without_kernels
from tests.table import ROWS, Row, every_keeping_row, every_row

SIZES = {"a": 600, "b": 7, "c": 0, "d": 1, "e": 90}


class Model(nn.Module):
    """Parameters of many sizes, one of them empty."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        for name, size in SIZES.items():
            zeros = torch.zeros(size, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(zeros))


def state_of(row: Row, dtype: torch.dtype = torch.float32) -> CompressionState:
    return CompressionState(Model(dtype), row.recipe, min_numel=row.min_numel)


def random_grads(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, generator=generator).to(dtype) for name, n in SIZES.items()}


def kept(state: CompressionState, slot: str = "residual") -> dict[str, Tensor]:
    tensors = state.state_dict()["tensors"].get(slot, {})
    return {name: tensors.get(name, torch.zeros(size)) for name, size in SIZES.items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@every_keeping_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_law_1_accumulated_is_sent_plus_retained(row, dtype):
    """Alone a rank gets back what it sent: m = mu m + g; v = v + m - sent.

    Or what it left of that as its own owner.
    """
    state = state_of(row, dtype)
    tolerance = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for step in range(8):
        residual, momentum = kept(state), kept(state, "momentum")
        second = kept(state, "owner_residual")
        grads = random_grads(step, dtype)
        sent = state.reduce(grads)
        after, second_after = kept(state), kept(state, "owner_residual")
        for name, grad in grads.items():
            accumulated = residual[name] + row.momentum * momentum[name] + grad + second[name]
            both = sent[name].to(after[name].dtype) + after[name] + second_after[name]
            torch.testing.assert_close(
                both, accumulated.to(both.dtype), rtol=2 * tolerance, atol=8 * tolerance
            )


def test_law_1_where_owners_answer_with_more_than_came():
    """A few entries come, all go back: what that loses of the others is kept, too."""
    recipe = replace(recipes.topk(0.05), exchange=Sharded(recipes.sign(64)))
    test_law_1_accumulated_is_sent_plus_retained(Row(recipe), torch.float32)


def density_of_answers(recipe: Recipe) -> float | Schedule:
    """Owners answer with a density of their own where the way down is another recipe."""
    down = getattr(recipe.exchange, "down", None) or recipe
    return down.select.density


@every_row
def test_law_1_every_step_sends_no_more_than_its_density(row):
    state = state_of(row)
    for step in range(8):
        density = density_at(density_of_answers(row.recipe), step)
        sent = state.reduce(random_grads(step))
        held = {name: t for name, t in sent.items() if t.numel() >= max(1, row.min_numel)}
        groups = [[t] for t in held.values()] if row.scope == "tensor" else [[*held.values()]]
        for group in groups:
            numel = sum(t.numel() for t in group)
            limit = max(1, math.floor(density * numel + 0.5))
            assert 0 < sum(int(t.count_nonzero()) for t in group) <= limit


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_dgc_zeroes_the_momentum_of_what_it_sent(momentum):
    """Factor masking; the rest keeps m = mu m + g."""
    state = CompressionState(Model(), recipes.dgc(0.1, momentum))
    expected = {name: torch.zeros(size) for name, size in SIZES.items()}
    for step in range(5):
        grads = random_grads(step)
        sent = state.reduce(grads)
        for name, grad in grads.items():
            expected[name] = momentum * expected[name] + grad
            expected[name][sent[name] != 0] = 0
        for name, tensor in kept(state, "momentum").items():
            torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize("scope", ["tensor", "bucket", "model"])
def test_sbc_sends_one_value_a_group(scope):
    state = CompressionState(Model(), recipes.sbc(0.05, scope))
    sent = state.reduce(random_grads(0))
    groups = [*sent.values()] if scope == "tensor" else [torch.cat([*sent.values()])]
    for tensor in groups:
        assert len(tensor[tensor != 0].unique()) == (1 if tensor.numel() else 0)


@pytest.mark.parametrize("scope", ["tensor", "bucket", "model"])
def test_law_3_density_1_sends_everything(scope):
    state = CompressionState(Model(), recipes.topk(1.0, scope))
    for step in range(3):
        assert_same(state.reduce(random_grads(step)), random_grads(step))
        assert not any(tensor.any() for tensor in kept(state).values())


def blocks_span_parameters(recipe: Recipe) -> bool:
    """Whether values share a block that are of different parameters, neighbours in their order."""
    in_blocks = isinstance(recipe.quantize, Rotated) or getattr(recipe.quantize, "block", None)
    return bool(in_blocks) and recipe.select.scope != "tensor"


ORDERLESS = {name: row for name, row in ROWS.items() if not blocks_span_parameters(row.recipe)}


@pytest.mark.parametrize("row", ORDERLESS.values(), ids=ORDERLESS)
def test_law_4_parameters_may_change_their_order(row):
    """As when DDP rebuilds its buckets: one flat gradient, then the same reversed."""
    straight, reversing = state_of(row), state_of(row)
    for step in range(6):
        grads = random_grads(step)
        backwards = dict(reversed(grads.items())) if step % 2 else grads
        expected = straight.reduce(grads)
        found = reversing.reduce(backwards)
        assert_same({name: found[name] for name in expected}, expected)
    assert_same(kept(straight), kept(reversing))


def in_pieces(state: CompressionState, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a step gives to which every parameter comes as a chunk of its own."""
    futures = [
        state.push(grad.clone(), Layout((name,), (grad.numel(),)), last=name == "e")
        for name, grad in grads.items()
    ]
    return dict(zip(grads, (future.wait() for future in futures), strict=True))


@pytest.mark.parametrize("flush_bytes", [1, 100, 10**6])
def test_chunks_make_the_same_step_however_they_are_sent(flush_bytes):
    """Messages gather chunks until they are full; that changes no number."""
    row = Row(recipes.topk(0.1, "tensor"))
    whole = state_of(row)
    pieces = CompressionState(Model(), row.recipe, flush_bytes=flush_bytes)
    for step in range(4):
        grads = random_grads(step)
        assert_same(in_pieces(pieces, grads), whole.reduce(grads))
    assert_same(kept(pieces), kept(whole))


def test_nothing_is_done_before_the_last_chunk():
    state = state_of(Row(recipes.topk(0.1, "tensor")))
    flat = torch.ones(600)
    first = state.push(flat, Layout(("a",), (600,)), last=False)
    assert not first.done()
    assert flat.tolist() == [1.0] * 600
    assert state.step == 0
    state.push(torch.ones(90), Layout(("e",), (90,)), last=True)
    assert first.done()
    assert state.step == 1
    assert int(flat.count_nonzero()) == 60


# ------------------------------------------------------------------------------------------ law 6


def bits_of_steps(row: Row) -> dict[str, Tensor]:
    """What comes of some steps: what is sent in every phase, means, and memory."""
    state, to_all = state_of(row), Comm.all_to_all
    bits: dict[str, Tensor] = {}

    def recording(comm: Comm, bodies: Sequence[Tensor], sizes: Sequence[int]) -> Any:
        bits[f"body {len(bits)}"] = torch.cat(list(bodies))
        return to_all(comm, bodies, sizes)

    with patch.object(Comm, "all_to_all", recording):
        for step in range(3):
            means = state.reduce(random_grads(step))
            bits |= {f"{name} of step {step}": mean for name, mean in means.items()}
    for slot, tensors in state.memory().items():
        bits |= {f"{slot} of {name}": tensor for name, tensor in tensors.items()}
    return bits


@every_row
def test_law_6_the_kernels_do_not_change_a_bit(row):
    native = bits_of_steps(row)
    assert "body 0" in native
    with without_kernels():
        assert ops.accumulate is reference.accumulate
        assert_same(native, bits_of_steps(row))


# ------------------------------------------------------------------------------------------ law 8


@every_row
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["a", "b", "d"])
def test_law_8_a_poisoned_step_never_was(row, bad, name):
    state, clean = state_of(row), state_of(row)
    for step in range(3):
        assert_same(state.reduce(random_grads(step)), clean.reduce(random_grads(step)))
    before = state.state_dict()
    poisoned = random_grads(3)
    poisoned[name][-1] = bad
    assert all(tensor.isnan().all() for tensor in state.reduce(poisoned).values())
    after = state.state_dict()
    assert after["step"] == before["step"]
    for slot, tensors in before["tensors"].items():
        assert_same(after["tensors"][slot], tensors)
    assert poisoned[name][-1] == bad or math.isnan(bad)  # the caller's tensor is not touched
    assert_same(state.reduce(random_grads(4)), clean.reduce(random_grads(4)))
    assert (state.stats.aborted, state.stats.steps) == (1, 4)


@pytest.mark.parametrize(
    "recipe",
    [recipes.topk(0.01), recipes.sbc(0.01), recipes.dgc(0.01)],
    ids=lambda recipe: recipe.name,
)
def test_law_8_finite_numbers_may_sum_to_infinity(recipe):
    """Residual and gradient are finite, their sum is not."""
    state = CompressionState(Model(), recipe)
    large = torch.full((600,), 2e38)
    assert state.reduce({"a": large})["a"].isfinite().all()
    before = kept(state)
    assert before["a"].max() > 1e38
    assert state.reduce({"a": large})["a"].isnan().all()
    assert_same(kept(state), before)
    assert state.step == 1


@pytest.mark.parametrize(
    "recipe",
    [
        *(recipes.topk(0.01), recipes.sbc(0.01), recipes.dgc(0.01, momentum=0.0)),
        recipes.rotated(3, error_feedback=True),  # whose noise is beyond the largest value
    ],
    ids=lambda recipe: recipe.name,
)
def test_law_8_finite_fp16_gradients_lose_nothing(recipe):
    """Residuals are fp32 and may outgrow fp16. A sum that does not fit must not be lost to inf."""
    state = CompressionState(Model(torch.float16), recipe)
    total, sent = torch.zeros(600), torch.zeros(600)
    for _ in range(6):
        total += 30_000
        mean = state.reduce({"a": torch.full((600,), 30_000.0, dtype=torch.float16)})["a"]
        assert mean.isfinite().all()
        sent += mean.float()
    torch.testing.assert_close(sent + kept(state)["a"], total, rtol=1e-3, atol=1)


@pytest.mark.parametrize("name", ["topk", "sbc", "dgc"])
def test_fp64_gradients_beyond_fp32_lose_nothing(name):
    """Values travel as fp32 at most; what does not fit stays in the fp64 residual."""
    state = CompressionState(Model(torch.float64), recipes.by_name(name, density=0.01))
    large = torch.full((600,), 1e300, dtype=torch.float64)
    sent = state.reduce({"a": large})["a"]
    assert sent.isfinite().all()
    torch.testing.assert_close(sent + kept(state)["a"], large)


# ------------------------------------------------------------------------------------------ law 9


@every_row
def test_law_9_nothing_comes_of_zeros(row):
    state = state_of(row)
    zeros = {name: torch.zeros(size) for name, size in SIZES.items()}
    assert_same(state.reduce(zeros), zeros)
    assert state.step == 1


@every_row
def test_law_9_equal_gradients_send_the_first_or_those_that_the_seed_picks(row):
    ones = {name: torch.ones(size) for name, size in SIZES.items()}
    flat = state_of(row).reduce(ones)["a"]
    count = int(flat.count_nonzero())
    if isinstance(row.recipe.quantize, Rotated):  # noise of little more than the values' norm
        noise = flat[flat != 0] - 1
        assert float(noise.norm() / flat.norm()) < 1.5
        return
    if isinstance(row.recipe.select, All):
        assert torch.equal(flat, torch.ones(600))
        return
    assert 0 < count < 600
    first = torch.cat([torch.ones(count), torch.zeros(600 - count)])
    assert torch.equal(flat, first) == (getattr(row.recipe.select, "seed", None) is None)


@every_row
def test_law_9_one_element_is_sent_whole(row):
    assert state_of(row).reduce({"d": torch.tensor([-3.0])})["d"].tolist() == [-3.0]


@every_row
def test_law_9_an_empty_parameter_is_left_empty(row):
    assert state_of(row).reduce({"c": torch.zeros(0)})["c"].numel() == 0


@every_row
def test_law_9_shapes_come_back(row):
    sent = state_of(row).reduce({"a": torch.ones(20, 30), "d": torch.tensor(2.0)})
    assert {name: tuple(t.shape) for name, t in sent.items()} == {"a": (20, 30), "d": ()}


# -------------------------------------------------------------------------------------- schedules


def test_a_schedule_starts_from_start_step():
    seen = []

    def density(step: int) -> float:
        seen.append(step)
        return 0.1

    state = CompressionState(Model(), recipes.topk(density), start_step=40)
    state.reduce(random_grads(0))
    assert state.step == 41
    assert 40 in seen
    assert min(seen) == 40


def test_a_warm_up_sends_less_and_less():
    state = CompressionState(Model(), recipes.topk(exponential_warmup(0.01, steps=5, start=0.25)))
    counts = [int(state.reduce({"a": random_grads(i)["a"]})["a"].count_nonzero()) for i in range(7)]
    assert counts == [150, 79, 41, 22, 11, 6, 6]


# ------------------------------------------------------------------------------ law 4, in one piece


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@every_row
def test_law_4_a_state_may_be_copied_whole(row, copied):
    state = state_of(row)
    for step in range(3):
        state.reduce(random_grads(step))
    twin = copied(state)
    assert_same(kept(twin), kept(state))
    for step in range(3, 6):
        assert_same(twin.reduce(random_grads(step)), state.reduce(random_grads(step)))
    assert_same(kept(twin), kept(state))
    assert twin.stats.steps == state.stats.steps
    if not row.recipe.select.tensors:  # else a copy's first ballot cannot follow another
        assert twin.stats == state.stats
