"""Rotated quantization: what each transform loses, whether it is right on average, what it costs.

    python bench/rotated.py

The network is the paper's for MNIST (`mnist_cnn`), trained on digits of 8 x 8 that are blown up to
28 x 28.

1. The normalized error ||decoded - x||^2 / ||x||^2 of the trained weights and of a gradient, by
   transform and bits: mean over the seeds.
2. The mean of many draws of one gradient against the gradient: z-scores of its elements.
3. Both directions on four ranks: up rotated at 4 bits, half of the coefficients, down at 5 bits. Of
   the network, and of the part of it that a federated dropout of 0.75 trains, against the dense
   network. What goes up, U, and down, D, follow from what a rank encoded, U + D / W, and from what
   it sent, (W - 1) / W (U + D).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import ddp_compress as dc
from networks import count_parameters, mnist_cnn
from output import show
from ranks import on_ranks

RANKS = 4
BITS = (1, 2, 3, 4, 8)
TRANSFORMS = ("kashin", "hadamard", "none")
Tensors = dict[str, Tensor]


def batches(size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random digits without end."""
    pixels, labels = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    images = F.interpolate(pixels.view(-1, 1, 8, 8).float() / 8 - 1, size=28)
    while True:
        chosen = torch.randint(len(images), (size,))
        yield images[chosen], labels[chosen]


def trained(steps: int) -> tuple[Tensors, Tensors]:
    """Weights after some steps, and the last gradient."""
    model = mnist_cnn()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _, (images, labels) in zip(tqdm(range(steps), leave=False), batches(32), strict=False):
        sgd.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        sgd.step()
    parameters = dict(model.named_parameters())
    grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    return {name: p.detach() for name, p in parameters.items()}, grads


def drawn(recipe: dc.Recipe) -> Callable[[Tensors], Tensor]:
    """What arrives of the network's tensors, flat; anew in every call."""
    state = dc.CompressionState(mnist_cnn(), recipe)

    def once(tensors: Tensors) -> Tensor:
        return flat(state.reduce(tensors))

    return once


def flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def errors(tensors: Tensors, seeds: int) -> Iterator[tuple[int, list[list[float]]]]:
    """By bits: every transform's normalized errors, one a seed."""
    exact = flat(tensors)

    def lost(bits: int, transform: str, seed: int) -> float:
        found = drawn(dc.recipes.rotated(bits, transform, seed=seed))(tensors)  # type: ignore[arg-type]
        return float(((found - exact).norm() / exact.norm()) ** 2)

    for bits in BITS:
        yield bits, [[lost(bits, each, seed) for seed in range(seeds)] for each in TRANSFORMS]


def z_scores(tensor: Tensor, transform: str, draws: int) -> Tensor:
    """Of the mean of many draws, for every element that varies."""
    state = dc.CompressionState(
        nn.ParameterDict({"x": nn.Parameter(tensor)}),
        dc.recipes.rotated(2, transform, keep=0.5),  # type: ignore[arg-type]
    )
    total, squares = torch.zeros_like(tensor).double(), torch.zeros_like(tensor).double()
    for _ in tqdm(range(draws), leave=False):
        lost = (state.reduce({"x": tensor})["x"] - tensor).double()
        total += lost
        squares += lost**2
    varied = squares > 0  # the few values that fill no block arrive as they are
    mean, square = total[varied] / draws, squares[varied] / draws
    return mean / ((square - mean**2) / draws).sqrt()


def both_ways(share: float, steps: int = 3) -> tuple[float, float]:
    """Bits up and down of one step, where W ranks send random gradients of the network."""
    model = mnist_cnn(*(round(share * width) for width in (32, 64, 512)))
    down = dc.recipes.rotated(5)
    state = dc.CompressionState(model, dc.recipes.rotated(4, keep=0.5, down=down))
    for _ in range(steps):
        state.reduce({name: torch.randn_like(p) for name, p in model.named_parameters()})
    encoded, sent = state.stats.payload_bits / steps, 8 * state.stats.sent_bytes / steps
    both = sent * RANKS / (RANKS - 1)
    came_down = (both - encoded) * RANKS / (RANKS - 1)
    return both - came_down, came_down


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of training; 100 by default")
    parser.add_argument("--seeds", type=int, default=10, help="10 by default")
    parser.add_argument("--draws", type=int, default=10_000, help="10 000 by default")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    dense_bits = 32 * count_parameters(mnist_cnn())
    for share in (1.0, 0.75):
        up, down = zip(*on_ranks(RANKS, both_ways, share), strict=True)
        ratios = [dense_bits / (sum(each) / RANKS) for each in (up, down)]
        print(f"share {share}: {ratios[0]:.2f} x up, {ratios[1]:.2f} x down")

    weights, gradient = trained(arguments.steps)
    for what, tensors in (("weights", weights), ("gradient", gradient)):
        table = Table("bits", *TRANSFORMS, "in order, seeds", title=f"Normalized error, {what}")
        for bits, lost in errors(tensors, arguments.seeds):
            ordered = sum(a <= b <= c for a, b, c in zip(*lost, strict=True))
            means = (f"{sum(each) / len(each):.4g}" for each in lost)
            table.add_row(str(bits), *means, f"{ordered} of {arguments.seeds}")
        show(table)

    some = gradient["3.weight"].flatten()[:2048].clone()
    for transform in TRANSFORMS:
        z = z_scores(some, transform, arguments.draws)
        print(
            f"{transform}: {len(z)} z-scores, mean square {z.square().mean():.3f}, "
            f"largest {z.abs().max():.2f}"
        )


if __name__ == "__main__":
    main()
