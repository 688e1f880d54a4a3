"""How `TopK` breaks ties, and the sums that it leaves."""

import pytest
import torch

from ddp_compress.memory import Residual
from ddp_compress.message.arena import Arena
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.layout import Layout
from ddp_compress.message.message import Message
from ddp_compress.message.plan import Plan
from ddp_compress.select import HeavierSide, TopK

SIZES = {"a": 300, "b": 500, "c": 200}


def chosen(select: TopK, step: int, order: str = "abc") -> set[tuple[str, int]]:
    """The places taken of a gradient of ones, its parameters in some order, one a chunk."""
    layouts = tuple(Layout((name,), (SIZES[name],)) for name in order)
    chunks = [
        Chunk(torch.ones(x.numel), x, Arena({"residual": torch.zeros(x.numel)})) for x in layouts
    ]
    message = Message(chunks, Plan(layouts, "model", 0.1), step, Residual())
    places = [(name, i) for name in order for i in range(SIZES[name])]
    indices = select(message).entries.positions
    assert len(indices) == 100
    return {places[i] for i in indices.tolist()}


@pytest.mark.parametrize("kind", [TopK, HeavierSide])
def test_without_a_seed_the_first_of_equals_are_taken(kind):
    assert chosen(kind(0.1, "model"), step=3) == {("a", i) for i in range(100)}


@pytest.mark.parametrize("kind", [TopK, HeavierSide])
def test_with_a_seed_they_differ_by_step_and_by_seed(kind):
    picks = [chosen(kind(0.1, "model", seed), step) for seed in range(3) for step in range(3)]
    for i, pick in enumerate(picks):
        assert {name for name, _ in pick} == set(SIZES)
        assert all(len(pick & other) < 40 for other in picks[:i])  # about 10 by chance


def test_ranks_and_layouts_break_ties_alike():
    """DDP rebuilds its buckets in another order; the choice stays."""
    assert chosen(TopK(0.1, "model", 7), 5, "abc") == chosen(TopK(0.1, "model", 7), 5, "cab")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_accumulated_gradient_is_the_same_from_the_sums_that_it_leaves(dtype):
    memory_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    layouts = tuple(Layout((name,), (size,)) for name, size in SIZES.items())
    torch.manual_seed(0)
    chunks = [
        Chunk(
            torch.randn(x.numel).to(dtype),
            x,
            Arena({"residual": torch.randn(x.numel, dtype=memory_dtype)}),
        )
        for x in layouts
    ]
    message = Message(chunks, Plan(layouts, "model", 0.1, min_numel=250), 0, Residual())
    positions = torch.arange(0, 1000, 7).int()
    look = [lambda: message.values_at(positions), message.uncompressed, message.accumulated]
    before = [each() for each in look]
    TopK(0.1, "model")(message)
    assert all(chunk.sums is not None for chunk in chunks)
    assert all(map(torch.equal, [each() for each in look], before))
