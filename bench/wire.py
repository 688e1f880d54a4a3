"""How small messages are: bits per position, and whole SBC messages on ResNet-50's shapes.

    python bench/wire.py

Sizes do not depend on the machine. Positions are uniformly random, so that the entropy H(p) / p
bounds them from below; a message's 16-byte header is counted.
"""

from __future__ import annotations

import math

import torch
from rich.table import Table
from torch import Tensor

import ddp_compress as dc
from ddp_compress import ops
from gradients import of_uneven_scale
from networks import count_parameters, resnet50
from output import show

HEADER_BITS = 128


def entropy(density: float) -> float:
    """Least bits a position costs on average when positions are random."""
    other = 1 - density
    return -(density * math.log2(density) + other * math.log2(other)) / density


def random_positions(numel: int, k: int) -> Tensor:
    """K distinct positions below N, ascending."""
    found = torch.randint(numel, (k + k // 4,)).unique()
    while len(found) < k:
        found = torch.cat([found, torch.randint(numel, (k,))]).unique()
    return found[torch.randperm(len(found))[:k]].sort().values.int()


def positions_table(numels: list[int], densities: list[float]) -> Table:
    """Bits a position, header included, and their ratio to the entropy bound."""
    table = Table(title="Bits per position, random positions, message header included")
    for column in ("N", "density", "bound", "Golomb-Rice", "x bound", "Elias-Fano", "x bound"):
        table.add_column(column, justify="right")
    for numel in numels:
        for density in densities:
            k = round(numel * density)
            positions = random_positions(numel, k)
            bound = entropy(density)
            rice = 8 * len(ops.golomb_encode(positions, torch.tensor([0, numel])))
            elias = 8 * len(ops.elias_fano_encode(positions, numel, k))
            cells = [f"{numel:,}", f"{density:.1%}", f"{bound:.3f}"]
            for bits in (rice, elias):
                each = (bits + HEADER_BITS) / k
                cells += [f"{each:.3f}", f"{each / bound:.4f}"]
            table.add_row(*cells)
    return table


def resnet_table(densities: list[float], steps: int) -> Table:
    """Payload ratio of SBC, every parameter counted, with gradients of uneven scale."""
    model = resnet50()
    count = count_parameters(model)
    table = Table(title=f"SBC on ResNet-50's shapes, {count:,} parameters, all counted")
    for column in ("density", "codec", "scope", "bits an entry", "payload bytes", "ratio"):
        table.add_column(column, justify="right")
    for density in densities:
        for codec in ("golomb", "elias_fano", "raw"):
            for scope in ("tensor", "model"):
                recipe = dc.recipes.sbc(density, scope=scope, codec=codec)
                state = dc.CompressionState(model, recipe)
                for _ in range(steps):
                    state.reduce(of_uneven_scale(model))
                stats = state.stats
                table.add_row(
                    f"{density:.1%}",
                    codec,
                    scope,
                    f"{stats.bits_per_nonzero:.3f}",
                    f"{stats.payload_bits / 8 / stats.steps:,.0f}",
                    f"{stats.ratio:.0f}",
                )
    return table


def main() -> None:
    """Print both tables."""
    torch.manual_seed(0)
    show(positions_table([10**6, 10**7, 10**8], [0.001, 0.01, 0.05]))
    show(resnet_table([0.001, 0.01], steps=2))


if __name__ == "__main__":
    main()
