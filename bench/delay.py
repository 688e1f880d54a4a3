"""What a step costs if weights travel only every H steps: payload ratio per iteration.

    python bench/delay.py

Ratio: fp32 bits of H gradients to the bits that a rank encodes in a round. SBC sends random weight
differences of ResNet-50's shapes, every parameter counted (sizes do not depend on the machine). The
vote's come from training: ResNet-18 learns digits (see `digits.py`) by `LocalUpdates`, and figures
are means over the last rounds and over ranks. The last column counts the buffers of the batch norms
too, if rounds average them: two fp32 numbers for each channel, uncompressed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import ddp_compress as dc
from digits import digits
from gradients import of_uneven_scale
from networks import RESNET18_NUMEL, resnet18, resnet50
from output import show
from ranks import on_ranks

RESNET50_BUFFERS = 2 * 26_560  # floating-point elements: mean and variance of every channel


@dataclass(frozen=True)
class Row:
    """What one round sends."""

    name: str
    period: int
    elements: int
    bits: float  # of weights
    buffer_bits: float
    asked: int

    @property
    def ratio(self) -> float:
        return self.period * 32 * self.elements / self.bits

    @property
    def ratio_with_buffers(self) -> float:
        return self.period * 32 * self.elements / (self.bits + self.buffer_bits)


def sbc(name: str, density: float, period: int, asked: int) -> Row:
    """Two rounds of random differences whose scale is uneven between tensors."""
    model = resnet50()
    state = dc.CompressionState(model, dc.recipes.sbc(density, codec="golomb"))
    for _ in range(2):
        state.reduce(of_uneven_scale(model))
    stats = state.stats
    elements = stats.elements // stats.steps
    bits = stats.payload_bits / stats.steps
    return Row(name, period, elements, bits, 32 * RESNET50_BUFFERS, asked)


def batches(pixels: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's digits without end."""
    rank = dist.get_rank()
    images, labels = digits(pixels)
    mine = torch.arange(rank, len(labels), dist.get_world_size())
    order = torch.Generator().manual_seed(rank)
    while True:
        some = mine[torch.randperm(len(mine), generator=order)[:size]]
        yield images[some], labels[some]


def vote_on_rank(period: int, rounds: int, measured: int, lr: float) -> tuple[float, float, float]:
    """Train as one rank: bits of a round's weights and of its buffers, the last period's loss."""
    torch.manual_seed(0)
    model = DistributedDataParallel(resnet18())
    recipe = dc.recipes.majority_vote(0.01, "add_drop", change=0.1, value_bits=4)
    state = dc.CompressionState(model, recipe)
    sgd = torch.optim.SGD(model.parameters(), lr)
    optimizer = dc.LocalUpdates(sgd, model, state, period)
    stream = batches(pixels=16, size=8)
    before = 0
    losses: list[float] = []
    for step in tqdm(range(period * rounds), unit="step", disable=dist.get_rank() > 0):
        if step == period * (rounds - measured):
            before = state.stats.payload_bits
        images, labels = next(stream)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    buffer_bits = 32 * floating_elements(model)
    bits = (state.stats.payload_bits - before) / measured - buffer_bits
    return bits, buffer_bits, sum(losses[-period:]) / period


def floating_elements(model: nn.Module) -> int:
    return sum(b.numel() for b in model.buffers() if b.is_floating_point())


def vote(options: argparse.Namespace) -> Row:
    """The majority vote with add-drop and levels of 4 bits, every 8 steps."""
    arguments = (8, options.rounds, options.measured, options.lr)
    outcomes = on_ranks(options.ranks, vote_on_rank, *arguments)
    bits, buffer_bits, loss = (sum(each) / len(each) for each in zip(*outcomes, strict=True))
    print(f"{8 * options.rounds} steps of {options.ranks} ranks: loss {loss:.3f} in the last 8")
    return Row("MV-AD-L8, 4 bits, ResNet-18", 8, RESNET18_NUMEL, bits, buffer_bits, 4000)


def render(rows: list[Row]) -> Table:
    table = Table(title="Payload ratio per iteration, delay counted")
    table.add_column("")
    columns = ("H", "bytes a round", "ratio", "asked", "buffer bytes a round", "ratio with these")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            str(row.period),
            f"{row.bits / 8:,.0f}",
            f"{row.ratio:,.0f}",
            f"{row.asked:,}",
            f"{row.buffer_bits / 8:,.0f}",
            f"{row.ratio_with_buffers:,.0f}" if row.period > 1 else "",
        )
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ranks", type=int, default=4, help="of the vote")
    add("--rounds", type=int, default=16, help="of the vote")
    add("--measured", type=int, default=6, help="rounds, the last ones")
    add("--lr", type=float, default=0.02)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [
        sbc("SBC(1), 0.1 %, ResNet-50", 0.001, 1, asked=2600),
        sbc("SBC(2), 1 %, ResNet-50", 0.01, 10, asked=3750),
        sbc("SBC(3), 1 %, ResNet-50", 0.01, 100, asked=37500),
        vote(options),
    ]
    show(render(rows))


if __name__ == "__main__":
    main()
