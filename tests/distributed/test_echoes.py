"""What `bench/scaling.py --nodes` counts is what real ranks and real nodes send."""

import pytest
import torch.distributed as dist

from ddp_compress import recipes
from ddp_compress.advise.echoes import echoed
from scaling_nodes import Setting, crossings, dense
from scaling_rank import Counts, measure
from tests.distributed.nodes import on_nodes

NUMEL, STEPS = 4096, 2
COUNTED = ("sent_bytes", "payload_bits", "collectives")
# How many entries a rank keeps, as their owner, differs between ranks.
CLOSE = {"all_gather": {"rel": 0, "abs": 0}, "sharded": {"rel": 0.1, "abs": 0}}
both_exchanges = pytest.mark.parametrize("exchange", CLOSE)


def flat(exchange: str, numel: int) -> Counts:
    counts = measure(recipes.topk(0.05, exchange=exchange), numel, STEPS)
    return {name: counts[name] for name in COUNTED}


@both_exchanges
def test_echoes_send_what_real_ranks_do(ranks, exchange):
    real = ranks.run(4, flat, exchange, NUMEL)
    dist.init_process_group(echoed(1), store=dist.HashStore(), rank=0, world_size=4)
    try:
        found = flat(exchange, NUMEL)
    finally:
        dist.destroy_process_group()
    for counts in real:
        assert found == pytest.approx(counts, **CLOSE[exchange])


@both_exchanges
def test_nodes_exchange_what_ranks_with_a_slice_do(ranks, exchange):
    slices = ranks.run(2, flat, exchange, NUMEL // 2)
    for counts in ranks.run(4, on_nodes, 2, flat, exchange, NUMEL):
        assert counts == pytest.approx(slices[0], **CLOSE[exchange])


def test_a_ring_and_two_levels_of_dense():
    setting = Setting.of([2, 4], 1005, 0.25, local=2, steps=1)
    assert setting.numel == 1000
    levels, ring = dense(4, setting)
    assert (levels.rank, levels.node) == (2 * 3 / 4 * 4 * 500, 2 * 3 / 4 * 4 * 1000)
    assert (ring.rank, ring.node) == (2 * 7 / 8 * 4 * 1000,) * 2
    assert (levels.words, ring.words) == (6, 7)


def test_of_what_a_rank_sends_to_all_a_part_stays_in_its_node():
    setting = Setting.of([2], 1000, 0.25, local=2, steps=1)
    row = setting.row("topk", 2, "echoes", rank=3000, within=False)
    assert (row.node, row.words) == (2 * 3000 * 2 / 3, 3)
    assert setting.row("topk", 2, "echoes", rank=3000, within=True).node == 6000


def test_where_owners_send_less():
    setting = Setting.of([2, 4], 1000, 0.25, local=2, steps=1)
    sent = {("topk", 2): 1, ("topk", 4): 3, ("topk, sharded", 2): 2, ("topk, sharded", 4): 2}
    rows = [setting.row(m, n, "echoes", rank, within=False) for (m, n), rank in sent.items()]
    assert "topk, sharded: less than topk on 4 nodes" in list(crossings(rows))
