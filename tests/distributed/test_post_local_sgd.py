"""The example's post-local SGD, on ranks whose gradients differ."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from post_local_sgd import PostLocalSGD


def weights_after_each_step() -> tuple[list[float], list[int]]:
    """Of steps along 0 and 2, for the ranks; and the all-reduces counted."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    model = DistributedDataParallel(network)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    averages = PostLocalSGD(sgd, model, period=2, dense_steps=1, steps=4)
    weights, all_reduces = [], []
    for _ in range(4):
        sgd.zero_grad()
        model(torch.full((1, 1), -2.0 * dist.get_rank())).sum().backward()
        sgd.step()
        weights.append(network.weight.item())
        all_reduces.append(averages.all_reduces)
    return weights, all_reduces


def test_weights_are_averaged_after_each_period_and_at_the_end(ranks):
    for rank, (weights, all_reduces) in enumerate(ranks.run(2, weights_after_each_step)):
        dense, local, averaged, last = 1.0, 1.0 + 2 * rank, 3.0, 4.0
        assert weights == [dense, local, averaged, last]
        assert all_reduces == [1, 1, 2, 3]
