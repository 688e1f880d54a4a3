"""What error feedback loses where the residual has fewer bits: losses after a training.

    python bench/residual_bits.py

Four ranks' gradients of `mnist_cnn` on scikit-learn's digits, one after another in one process;
of each residual the largest 1 % or 0.1 % are sent in fp32, and the mean is applied by SGD.
Residuals are kept in fp32, in bf16, rounded to the nearest or at random, or in 8 bits of a block of
4096.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from networks import mnist_cnn
from output import show
from rotated import batches, flat

RANKS, BLOCK = 4, 4096


def bf16(residual: Tensor) -> Tensor:
    return residual.bfloat16().float()


def bf16_at_random(residual: Tensor) -> Tensor:
    """Up or down, so that it is right on average: the low 16 bits are the odds."""
    noise = torch.randint(1 << 16, residual.shape, dtype=torch.int32)
    return (residual.view(torch.int32) + noise & ~0xFFFF).view(torch.float32)


def int8(residual: Tensor) -> Tensor:
    """127 steps up to the largest magnitude of a block, to the nearest."""
    padded = F.pad(residual, (0, -len(residual) % BLOCK)).view(-1, BLOCK)
    step = padded.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return ((padded / step).round() * step).view(-1)[: len(residual)]


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "fp32": lambda residual: residual,
    "bf16, nearest": bf16,
    "bf16, at random": bf16_at_random,
    "8 bits": int8,
}


def loss_of(keep: Callable[[Tensor], Tensor], density: float, steps: int, seed: int) -> float:
    """The mean loss over the last tenth of a training."""
    torch.manual_seed(seed)
    model, given = mnist_cnn(), batches(16)
    parameters = list(model.parameters())
    numel = sum(p.numel() for p in parameters)
    residuals, losses = [torch.zeros(numel) for _ in range(RANKS)], []
    for _ in range(steps):
        mean = torch.zeros(numel)
        for rank, (images, labels) in zip(range(RANKS), given, strict=False):
            loss = F.cross_entropy(model(images), labels)
            grads = torch.autograd.grad(loss, parameters)
            total = residuals[rank] + flat(dict(enumerate(grads)))  # type: ignore[arg-type]
            chosen = total.abs().topk(round(density * numel)).indices
            mean[chosen] += total[chosen] / RANKS
            total[chosen] = 0.0
            residuals[rank] = keep(total)
            losses.append(loss.item())
        with torch.no_grad():
            for p, part in zip(
                parameters, mean.split([p.numel() for p in parameters]), strict=True
            ):
                p.sub_(0.05 * part.view_as(p))
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--density", type=float, nargs="+", default=[0.01, 0.001])
    args = parser.parse_args()
    table = Table("residual", *[f"loss at {density:.1%}" for density in args.density])
    for name, keep in KINDS.items():
        cells = []
        for density in args.density:
            seeds = tqdm(range(args.seeds), name, leave=False)
            losses = [loss_of(keep, density, args.steps, seed) for seed in seeds]
            cells.append(f"{statistics.mean(losses):.4f} ({min(losses):.4f} … {max(losses):.4f})")
        table.add_row(name, *cells)
    show(table)


if __name__ == "__main__":
    main()
