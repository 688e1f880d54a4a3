"""Statistics count what really went into collectives."""

from itertools import pairwise

import pytest
import torch
import torch.distributed as dist

from ddp_compress import CompressionState, recipes
from tests.distributed.training import MANY_BUCKETS, backward, small_model, train, wrap
from tests.table import ROWS, Row, every_recipe


def counted_and_seen(row: Row) -> None:
    """Wrap the one collective, and compare."""
    to_all = dist.all_to_all_single
    rank, world_size = dist.get_rank(), dist.get_world_size()
    sent, received = [], []

    def counting_to_all(output, given, sizes, lengths, **options):
        assert len(given) == sum(lengths)
        if options.get("async_op"):  # what ranks agree on before the first step is not counted
            sent.append(sum(lengths) - lengths[rank])
            received.append(sum(sizes) - sizes[rank])
        return to_all(output, given, sizes, lengths, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_to_all_single", counting_to_all)
        ddp, state = wrap(small_model(), row, flush_bytes=300, bucket_cap_mb=MANY_BUCKETS)
        for number in range(5):
            train(ddp, [number])
    stats, others = state.stats, world_size - 1
    assert stats.steps == 5
    assert stats.aborted == 0
    assert stats.collectives == len(sent)
    assert stats.sent_bytes == sum(sent)
    assert stats.received_bytes == sum(received)
    assert stats.elements == 5 * 755
    assert stats.dense_bytes == pytest.approx(2 * others / (others + 1) * 4 * 5 * 755)
    assert stats.ratio == 32 * stats.elements / stats.payload_bits
    assert 0 < stats.position_bits + stats.value_bits < stats.payload_bits
    assert stats.bits_per_nonzero == stats.payload_bits / stats.nonzeros


@every_recipe
def test_bytes_are_those_that_went_into_collectives(ranks, row):
    ranks.run(3, counted_and_seen, row)


def collectives_of_every_step(codec: str, flush_bytes: int) -> list[int]:
    row = Row(recipes.sbc(0.05, "tensor", codec))
    ddp, state = wrap(small_model(), row, flush_bytes=flush_bytes, bucket_cap_mb=MANY_BUCKETS)
    counts = [0]
    for number in range(12):
        train(ddp, [number])
        counts.append(state.stats.collectives)
    return [after - before for before, after in pairwise(counts)]


@pytest.mark.parametrize("codec", ["elias_fano", "raw"])
def test_a_step_of_fixed_size_is_one_collective(ranks, codec):
    """But the first, in which ranks learn the size."""
    for counts in ranks.run(2, collectives_of_every_step, codec, 256 * 1024):
        assert counts[0] == 2
        assert counts[1:] == [1] * 11


def test_a_golomb_step_is_two_collectives_at_most(ranks):
    for counts in ranks.run(4, collectives_of_every_step, "golomb", 256 * 1024):
        assert max(counts) <= 2
        assert min(counts) == 1


def test_small_messages_are_a_collective_each(ranks):
    """The first step has one bucket; then DDP makes a bucket of every few parameters."""
    for counts in ranks.run(2, collectives_of_every_step, "elias_fano", 1):
        assert len(set(counts[2:])) == 1
        assert counts[2] >= 4


def payload_of(row: Row, grads: dict[str, torch.Tensor]) -> tuple[int, int]:
    state = CompressionState(small_model(), row.recipe, min_numel=row.min_numel)
    state.reduce(grads)
    return state.stats.payload_bits, state.stats.nonzeros


def test_exact_parameters_are_counted():
    """A header of 16 bytes, 4 for every exact number, and no positions."""
    grads = {"4.bias": torch.ones(3)}
    assert payload_of(Row(recipes.sbc(0.1), min_numel=10), grads) == (8 * (16 + 3 * 4), 3)
    bits, nonzeros = payload_of(Row(recipes.sbc(1.0, "tensor")), grads)
    assert nonzeros == 3
    assert bits < 8 * (16 + 3 * 4)


def test_alone_nothing_is_sent():
    """Without torch.distributed the payload is encoded all the same, for its ratio."""
    state = CompressionState(small_model(), ROWS["sbc"].recipe)
    state.reduce({"0.weight": torch.ones(288)})
    assert state.stats.payload_bits > 0
    assert (state.stats.sent_bytes, state.stats.received_bytes, state.stats.collectives) == (0,) * 3
    assert state.stats.dense_bytes == 0


def aborted_step() -> tuple[int, int, int]:
    ddp, state = wrap(small_model(), ROWS["topk"])
    train(ddp, [0])
    handle = next(ddp.parameters()).register_hook(lambda grad: grad * torch.inf)
    backward(ddp, 1)
    handle.remove()
    return state.stats.steps, state.stats.aborted, state.step


def test_an_aborted_step_is_counted_apart(ranks):
    assert ranks.run(2, aborted_step) == [(1, 1, 1)] * 2
