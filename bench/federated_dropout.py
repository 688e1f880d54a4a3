"""Federated dropout on its paper's MNIST network, beside the full model.

    python bench/federated_dropout.py --ranks 4 --rounds 10 --seeds 2

The network is the one of federated averaging (two 5×5 convolutions, 512 hidden units, 1,663,370
parameters), the images are scikit-learn's 1797 digits, scaled to 28 × 28. As in the paper a round
is an epoch of a rank's images with plain SGD, batches of 10 and a learning rate of 0.15.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ddp_compress as dc
from digits import digits, share_right, shares
from networks import count_parameters, mnist_cnn
from ranks import on_ranks

BATCH = 10
LINEAR = ("7", "9")  # the network's linear layers
AVERAGING = dc.recipes.topk(1.0, exchange="union")  # federated averaging
SBC = dc.recipes.sbc(0.01)
INPUTS_OF = {"3": "0", "7": "3", "9": "7"}  # by layer, the layer whose units it reads


@dataclass(frozen=True)
class Case:
    """How to train."""

    name: str
    rate: float
    per_rank: bool = False
    recipe: dc.Recipe = AVERAGING


CASES = [
    Case("full model", 1.0),
    Case("0.75", 0.75),
    Case("0.75, one a rank", 0.75, per_rank=True),
    Case("full model, sbc 1 %", 1.0, recipe=SBC),
    Case("0.75, sbc 1 %", 0.75, recipe=SBC),
    Case("0.75, one a rank, sbc 1 %", 0.75, per_rank=True, recipe=SBC),
    Case("0.5", 0.5),
]


def main() -> None:
    """Show the sizes and that outputs agree; time; train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="timed of each model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    show_sizes()
    show_equality()
    show_times(args.steps)
    print(
        f"{args.ranks} ranks, {args.rounds} rounds, {args.seeds} seeds: accuracy on unseen digits,"
    )
    print("payload of a rank against the full model's in fp32")
    for case in CASES:
        outcomes = [
            on_ranks(args.ranks, train, case, args.rounds, seed)[0] for seed in range(args.seeds)
        ]
        accuracies, ratios = zip(*outcomes, strict=True)
        each = " ".join(f"{100 * accuracy:5.1f}" for accuracy in accuracies)
        mean = 100 * statistics.mean(accuracies)
        print(f"  {case.name:27} {mean:5.1f} % ({each})  1 : {ratios[0]:,.2f}", flush=True)


def show_sizes() -> None:
    for rate in (0.875, 0.75, 0.5):
        dropout = dc.FederatedDropout(mnist_cnn(), rate)
        full, part = (
            (count_parameters(m), sum(count_parameters(m.get_submodule(name)) for name in LINEAR))
            for m in (dropout.model, dropout.sub_model)
        )
        fewer = [f"{100 * (1 - p / f):.1f} %" for f, p in zip(full, part, strict=True)]
        print(f"rate {rate}: {part[0]:,} of {full[0]:,} parameters, {fewer[0]} fewer;", end=" ")
        print(f"in linear layers {part[1]:,} of {full[1]:,}, {fewer[1]} fewer")


def show_equality() -> None:
    """The largest difference between a sub-model and the full one with zeros for what it drops."""
    torch.manual_seed(0)
    dropout = dc.FederatedDropout(mnist_cnn(), 0.75)
    images, worst = torch.randn(100, 1, 28, 28), 0.0
    for number in range(10):
        dropout.draw(number)
        kept, x = dropout.kept(number), images
        for name, layer in dropout.model.named_children():
            if name in INPUTS_OF:
                producer = INPUTS_OF[name]
                units = len(dropout.model.get_parameter(f"{producer}.weight"))
                mask = torch.zeros(units).index_fill_(0, kept[producer], 1.0)
                wide = mask.repeat_interleave(x.shape[1] // units)
                x = x * wide.view(-1, *[1] * (x.dim() - 2))
            x = layer(x)
        worst = max(worst, (x - dropout.sub_model(images)).abs().max().item())
    print(f"sub-model against masked full model: differences up to {worst:.1e}, 10 rounds")


def show_times(steps: int) -> None:
    """Median time of a local step on one core, the models in turns; CPU time, for busy machines."""
    images, labels = digits(28)
    images, labels = images[:BATCH, :1].contiguous(), labels[:BATCH]
    models = {rate: dc.FederatedDropout(mnist_cnn(), rate).sub_model for rate in (1.0, 0.75, 0.5)}
    optimizers = {rate: torch.optim.SGD(m.parameters(), 0.01) for rate, m in models.items()}
    times: dict[float, list[float]] = {rate: [] for rate in models}
    for _ in range(steps):
        for rate, model in models.items():
            start = time.process_time()
            step(model, optimizers[rate], images, labels)
            times[rate].append(time.process_time() - start)
    full = statistics.median(times[1.0])
    for rate, each in times.items():
        median = statistics.median(each)
        print(f"rate {rate}: {1000 * median:.1f} ms CPU a step, 1 : {full / median:.2f}")


def train(case: Case, rounds: int, seed: int) -> tuple[float, float]:
    """As one rank: accuracy of the full model, and how many times smaller its messages were."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(seed)
    full = mnist_cnn()
    dropout = dc.FederatedDropout(full, case.rate, seed, case.per_rank)
    images, labels = digits(28)
    images = images[:, :1].contiguous()
    mine, unseen = shares(labels, rank, world_size)
    steps = len(shares(labels)[0]) // world_size // BATCH  # as many on every rank
    order = torch.Generator().manual_seed(seed * 1000 + rank)

    if case.per_rank:
        state = dc.CompressionState(full, case.recipe)
        dropout.attach(state)
        model: nn.Module = dropout.sub_model
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 0.15)
    else:
        model = DistributedDataParallel(dropout.sub_model)
        state = dc.CompressionState(model, case.recipe)
        sgd = torch.optim.SGD(model.parameters(), 0.15)
        optimizer = dc.LocalUpdates(sgd, model, state, period=steps)
        dropout.attach(optimizer)
    for number in range(rounds):
        dropout.draw(number)
        shuffled = mine[torch.randperm(len(mine), generator=order)]
        for some in shuffled[: steps * BATCH].split(BATCH):
            step(model, optimizer, images[some], labels[some])
        dropout.merge()
    ratio = 32 * count_parameters(full) * state.stats.steps / state.stats.payload_bits
    return share_right(full, images[unseen], labels[unseen]), ratio


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


if __name__ == "__main__":
    main()
