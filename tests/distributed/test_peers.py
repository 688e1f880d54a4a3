"""Peers' methods that `bench/links.py` runs send what is worked out by hand, on two ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gradients import FixedGradients
from links_methods import Method, methods


def means(name: str, options: dict, steps: list[list[list[Tensor]]]) -> tuple[list, tuple]:
    """Every step's mean gradients, and what the last one encoded: entries and bits.

    Args:
        name, options: of the method.
        steps: of each, of each rank, the gradients.
    """
    peer = Method(name, tuple(options.items())).peer()
    assert peer
    model = DistributedDataParallel(FixedGradients([torch.zeros_like(g) for g in steps[0][0]]))
    model.register_comm_hook(None, lambda _, bucket: peer.hook(bucket))
    found, counts = [], (0, 0)
    for step in steps:
        before = peer.stats.nonzeros, peer.stats.payload_bits
        model(step[dist.get_rank()]).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        counts = peer.stats.nonzeros - before[0], peer.stats.payload_bits - before[1]
    return found, counts


def check(ranks, name, options, steps, expected, counts, atol=0.0):
    """Ranks come to the expected means, and count what each encodes in the last step."""
    given = [[[torch.as_tensor(g) for g in rank] for rank in step] for step in steps]
    found = ranks.run(2, means, name, options, given)
    for of_rank, _ in found:
        for step, right in zip(of_rank, expected, strict=True):
            for tensor, numbers in zip(step, right, strict=True):
                torch.testing.assert_close(tensor, torch.as_tensor(numbers), rtol=0, atol=atol)
    assert [counted for _, counted in found] == counts


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_16_bits(ranks, name):
    steps = [[[[1.0, -6.0, 0.5]], [[3.0, 2.0, 0.5]]]]
    check(ranks, name, {}, steps, [[[2.0, -2.0, 0.5]]], [(3, 3 * 16)] * 2)


def test_powersgd_finds_matrices_of_its_rank(ranks):
    one, other = torch.outer(torch.arange(1.0, 9), torch.ones(8)), torch.ones(8, 8)
    mean = (one + other) / 2
    counts = [(64, 2 * 8 * 32)] * 2
    check(ranks, "powersgd", {"rank": 1}, [[[one], [other]]] * 3, [[mean]] * 3, counts, atol=1e-5)


@pytest.mark.parametrize(("index_bits", "bits"), [(64, 96), (32, 64)])
@pytest.mark.parametrize("name", ["pairs", "grace_topk"])
def test_what_is_not_sent_is_kept(ranks, name, index_bits, bits):
    steps = [
        [[[8.0, 1.0, -5.0, 0.0]], [[3.0, 4.0, 2.0, 0.0]]],
        [[[0.0, 1.0, 0.0, 0.0]], [[0.0, 9.0, 3.0, 0.0]]],
    ]
    expected = [[[4.0, 2.0, 0.0, 0.0]], [[0.0, 4.5, -2.5, 0.0]]]
    options = {"density": 0.25, "index_bits": index_bits}
    check(ranks, name, options, steps, expected, [(1, bits)] * 2)


def test_pairs_are_of_a_bucket_and_graces_of_a_tensor(ranks):
    steps = [[[[8.0, 7.0, 0.0], [1.0]], [[0.0, 0.0, 5.0], [1.0]]]]
    options, pair = {"density": 0.25}, 96
    check(ranks, "pairs", options, steps, [[[4.0, 0.0, 2.5], [0.0]]], [(1, pair)] * 2)
    check(ranks, "grace_topk", options, steps, [[[4.0, 0.0, 2.5], [1.0]]], [(2, 2 * pair)] * 2)


def test_graces_dgc_corrects_momentum(ranks):
    # Whichever entry is drawn: in the end one alone is above the threshold.
    steps = [
        [[[1000.0, 1.0, 1.0, 1.0]], [[2.0, 2.0, 2.0, 2000.0]]],
        [[[1.0, 1.0, 1000.0, 1.0]], [[2000.0, 2.0, 2.0, 2.0]]],
    ]
    # Of 1 that is kept, half is momentum.
    expected = [[[500.0, 0.0, 0.0, 1000.0]], [[2003.0 / 2, 0.0, 1001.5 / 2, 0.0]]]
    options, sizes = {"density": 0.25, "momentum": 0.5}, 2 * 64
    check(ranks, "grace_dgc", options, steps, expected, [(1, 96 + sizes)] * 2)


def test_graces_dgc_sends_as_many_as_are_above(ranks):
    one, other = [100.0] * 3 + [1.0] * 5, [1.0] * 3 + [50.0] * 5
    sizes = 2 * 64
    counts = [(3, 3 * 96 + sizes), (5, 5 * 96 + sizes)]
    expected = [[[50.0] * 3 + [25.0] * 5]]
    check(ranks, "grace_dgc", {"density": 0.5}, [[[one], [other]]], expected, counts)


def test_ok_topk(ranks):
    # Four of eight. The threshold is 6: three entries of each rank are above it. Regions part where
    # those halve, at 3. Of five sums the four largest are sent, and the threshold of sums is 7.5.
    first = [
        [[9.0, 1.0, 0.0, 8.0, 0.0, 7.0, 6.0, 0.0]],
        [[0.0, 9.0, 0.0, 8.0, 7.5, 0.0, 6.0, 0.0]],
    ]
    # The 7 that was sent in vain is again; it, and 6 of both ranks, are below the thresholds.
    second = [[[0.0] * 8], [[0.0, 0.0, 9.5, 0.0, 0.0, 0.0, 0.0, 0.0]]]
    # That was too few entries: thresholds have sunk, the one of ranks below 6.
    third = [[[0.0] * 8], [[0.0] * 8]]
    expected = [
        [[4.5, 4.5, 0.0, 8.0, 3.75, 0.0, 0.0, 0.0]],
        [[0.0, 0.0, 4.75, 0.0, 0.0, 0.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 6.0, 0.0]],
    ]
    # 7 and 6 to their owner; the sum of 6 and 6 to all.
    pair, sizes = 64, 2 * 64
    counts = [(2, 2 * pair + sizes), (1, pair + sizes)]
    check(ranks, "ok_topk", {"density": 0.5}, [first, second, third], expected, counts)


def test_cgx_rounds_to_sixteen_values_twice(ranks):
    whole = torch.arange(1000.0) % 16
    one, other, mean = torch.zeros(1000), torch.zeros(1000), torch.zeros(1000)
    for owner, begin in enumerate((0, 512)):
        one[begin : begin + 3] = torch.tensor([30.0, 0.8, 13.2])
        other[begin + 1] = 0.8
        # 0.4 of rank 0 is lost on its way to rank 1, and not in its own part.
        mean[begin : begin + 3] = torch.tensor([15.0, [1.0, 0.0][owner], 7.0])
    steps = [[[2 * whole], [4 * whole]], [[one], [other]]]
    bits = 2 * (512 * 4 + 2 * 32)
    counts = [(1024, bits)] * 2
    check(ranks, "cgx", {}, steps, [[3 * whole], [mean]], counts, atol=1e-5)


def test_one_bit_keeps_what_owners_miss(ranks):
    ones, pair = torch.ones(8), torch.tensor([1.0, -1.0]).repeat(4)
    steps = [
        [[torch.cat([ones, ones])], [3 * torch.cat([ones, pair])]],
        [[torch.zeros(16)], [torch.zeros(16)]],
    ]
    scale = 2.5**0.5  # of 2 and -1
    left = (((2 - scale) ** 2 + (scale - 1) ** 2) / 2) ** 0.5
    expected = [[torch.cat([2 * ones, scale * pair])], [torch.cat([0 * ones, left * ones])]]
    check(ranks, "one_bit", {}, steps, expected, [(16, 16 + 2 * 32)] * 2, atol=1e-6)


def test_one_bit_keeps_what_ranks_miss(ranks):
    steps = [
        [[torch.tensor([1.0, 7.0]).repeat(8)], [torch.zeros(16)]],
        [[torch.zeros(16)], [torch.zeros(16)]],
    ]
    # 1 and 7 are sent as 5: -4 and 2 are missing, which are sent as their root mean square.
    expected = [[torch.full((16,), 2.5)], [torch.tensor([-1.0, 1.0]).repeat(8) * 10**0.5 / 2]]
    check(ranks, "one_bit", {}, steps, expected, [(16, 16 + 2 * 32)] * 2, atol=1e-6)


def test_floor_sends_nothing(ranks):
    given = [[[torch.tensor([1.0])], [torch.tensor([2.0])]]]
    found = ranks.run(2, means, "floor", {}, given)
    assert [(float(step[0][0]), counts) for step, counts in found] == [(1, (0, 0)), (2, (0, 0))]


def test_words_of_peers_are_their_own():
    *_, sparse, dense = methods(["pairs,index_bits=32", "powersgd,rank=4"], [0.01])
    assert sparse == Method("pairs", (("index_bits", 32), ("density", 0.01)))
    assert dense == Method("powersgd", (("rank", 4),))
    with pytest.raises(ValueError, match="pairs,index_bits=16: index_bits: expected 32 or 64, got"):
        list(methods(["pairs,index_bits=16"], [0.01]))
    with pytest.raises(ValueError, match=r"cgx,within=node: .*unexpected keyword"):
        list(methods(["cgx,within=node"], [0.01]))
