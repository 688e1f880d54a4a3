"""All entries, read and added where they lie, are as if decoded one rank after another."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ddp_compress import Recipe
from ddp_compress.exchange.all_entries import AllEntries, can_add
from ddp_compress.exchange.separate import SeparateLists
from ddp_compress.exchange.uncompressed import split_uncompressed
from ddp_compress.memory import MomentumCorrection, NoMemory, Residual
from ddp_compress.message.arena import Arena
from ddp_compress.message.chunk import Chunk, memory_dtype
from ddp_compress.message.entries import AnyEntries, add_entries
from ddp_compress.message.layout import Layout
from ddp_compress.message.message import Message
from ddp_compress.message.plan import Plan
from ddp_compress.recipes import rotated, sign, topk
from ddp_compress.stats import Stats

# Parameters below 20 elements are uncompressed: between others, first and last in a chunk.
LAYOUTS = (
    Layout(("a", "b", "c", "d"), (7, 100, 3, 1000)),
    Layout(("e", "f"), (64, 5)),
    Layout(("g",), (0,)),
)
RECIPES = {
    "sign": sign(64),
    "hadamard": rotated(4),
    "some of kashin": rotated(3, "kashin", keep=0.5, error_feedback=True),
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64]
)


def message_of(
    recipe: Recipe,
    dtype: torch.dtype,
    rank: int = 0,
    unused: bool = False,
    scale: Tensor | None = None,
    min_numel: int = 20,
) -> Message:
    generator, chunks = torch.Generator().manual_seed(rank), []
    for layout in LAYOUTS:
        grad = torch.randn(layout.numel, generator=generator).to(dtype)
        if unused:
            layout.split(grad)[layout.names[0]].zero_()
            if "b" in layout.names:
                layout.split(grad)["b"].zero_()
        kept = {
            slot: torch.randn(layout.numel, generator=generator).to(memory_dtype(dtype))
            for slot in recipe.memory.tensors
        }
        chunks.append(Chunk(grad, layout, Arena(kept), may_be_unused=unused, scale=scale))
    plan = Plan(LAYOUTS, "tensor", 1.0, min_numel)
    return Message(chunks, plan, 3, recipe.memory, momentum=0.9 * bool(len(recipe.tensors) > 1))


def added(message: Message, lists: list[AnyEntries], scale: float, afresh: bool) -> list[Tensor]:
    """Gradients of every chunk with some lists added."""
    outs = []
    for start, chunk in zip(message.plan.starts, message.chunks, strict=True):
        outs.append(chunk.grad.clone())
        add_entries(outs[-1], start, lists, scale, afresh)
    return outs


def test_they_are_those_of_quantizers_that_can():
    assert all(map(can_add, RECIPES.values()))
    assert not can_add(topk())


@every_recipe
@every_dtype
@pytest.mark.parametrize("unused", [False, True], ids=["used", "unused"])
@pytest.mark.parametrize("min_numel", [0, 20, 10**6])
@pytest.mark.parametrize("memory", [Residual(), MomentumCorrection(0.9), NoMemory()], ids=repr)
def test_bytes_and_sums_are_those_of_separate_lists(recipe, dtype, unused, min_numel, memory):
    recipe = replace(recipe, memory=memory)
    given = {"unused": unused, "min_numel": min_numel}
    bodies = []
    for rank in range(3):
        here, there = (message_of(recipe, dtype, rank, **given) for _ in range(2))
        body = AllEntries(here, recipe, Stats(), rank).encode()
        expected = SeparateLists(there, recipe, Stats(), rank).encode()
        assert body is not None
        assert expected is not None
        assert torch.equal(body, expected)
        bodies.append(body)
    message = message_of(recipe, dtype, **given)
    rest, _ = split_uncompressed(bodies, message)
    kinds = AllEntries, SeparateLists
    found, separate = ([*kind(message, recipe, Stats(), rank=0).decode(rest)] for kind in kinds)
    for scale, afresh, ranks in ((1 / 3, True, 3), (-1.0, False, 1)):
        ours = added(message, found[:ranks], scale, afresh)
        theirs = added(message, separate[:ranks], scale, afresh)
        assert all(map(torch.equal, ours, theirs))
    for start, chunk in zip(message.plan.starts, message.chunks, strict=True):
        momenta = [chunk.grad.to(message.memory_dtype, copy=True) for _ in kinds]
        for momentum, lists in zip(momenta, (found, separate), strict=True):
            lists[0].zero_in(momentum, start)
        assert torch.equal(*momenta)


@every_recipe
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_loss_scale_lowers_the_limit_alike(recipe, dtype):
    scale = torch.tensor(2.0**120 if dtype == torch.float32 else 4096.0)
    here, there = (message_of(recipe, dtype, scale=scale) for _ in range(2))
    for message in (here, there):
        message.chunks[0].grad[20:30] = 3e4
    body = AllEntries(here, recipe, Stats(), rank=0).encode()
    expected = SeparateLists(there, recipe, Stats(), rank=0).encode()
    assert body is not None
    assert expected is not None
    assert torch.equal(body, expected)
    rest, _ = split_uncompressed([body], here)
    lists = (
        [*kind(here, recipe, Stats(), rank=0).decode(rest)] for kind in (AllEntries, SeparateLists)
    )
    ours, theirs = (added(here, each, 1.0, True) for each in lists)
    assert all(map(torch.equal, ours, theirs))


@every_recipe
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", [(0, 0), (0, 50), (1, 68)])  # uncompressed, compressed
def test_what_is_not_finite_is_not_sent(recipe, bad, place):
    message = message_of(recipe, torch.float32)
    chunk, element = place
    message.chunks[chunk].grad[element] = bad
    assert AllEntries(message, recipe, Stats(), rank=0).encode() is None
