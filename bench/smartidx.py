"""SmartIdx on the three networks of its appendix, beside SBC and DGC at the same density.

    python bench/smartidx.py                 # Table 3's sparse ratios, Fashion-MNIST's targets
    python bench/smartidx.py --networks vgg11 --steps 40 --recipes smartidx
    python bench/smartidx.py --rounds 15     # the time of a step, at 10 % of 11.2 M parameters

Networks are those of the appendix's Table 1, images scikit-learn's digits at 28 × 28 pixels. (The
appendix's are Fashion-MNIST's of that size, which cannot be had here.) Table 1 gives no widths for
Inception modules: they are half of GoogLeNet's, as its first layers are about a half. Only ResNet
has batch normalization, as in the papers. Training is one rank's, so that a run shows what
compression costs alone.

What is shown for every run, means over all steps: the payload's ratio to fp32; entries sent (with a
value other than 0) over all; bits for each of them; the energy kept, (|a|² - |a - sent|²) / |a|² of
what had accumulated (a), beside that of as many entries of top-k, sent as they are; and for every
package its share of the entries and its position and value bits an entry.

With ``--rounds``, a whole one-rank step (select, encode, decode, commit) of ResNet-18's shapes,
made-up gradients, on one thread, beside SBC's: medians of interleaved rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddp_compress as dc
from digits import digits, grad_of, share_right, shares
from gradients import heavy_tailed
from networks import RESNET18_NUMEL, RESNET18_SHAPES, Block, normed
from networks import resnet18 as large_resnet18

# ----------------------------------------------------------------------------------- the networks


def conv(into: int, width: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution and what is behind it."""
    return nn.Sequential(nn.Conv2d(into, width, size, stride, padding=size // 2), nn.ReLU())


def vgg11() -> nn.Sequential:
    """Vgg11*: 282,954 parameters."""
    return nn.Sequential(
        *(conv(1, 16, 3), nn.MaxPool2d(2), conv(16, 32, 3), nn.MaxPool2d(2)),
        *(conv(32, 64, 3), conv(64, 64, 3), nn.MaxPool2d(2)),
        *(conv(64, 128, 3), conv(128, 128, 3), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


class Inception(nn.Module):
    """Inception V1: kernels of 1, 3 and 5, and a pool, side by side."""

    def __init__(self, into: int, one: int, three: tuple[int, int], five: tuple[int, int]) -> None:
        super().__init__()
        self.ways = nn.ModuleList(
            [
                conv(into, one, 1),
                nn.Sequential(conv(into, three[0], 1), conv(*three, 3)),
                nn.Sequential(conv(into, five[0], 1), conv(*five, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(into, five[1], 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([way(x) for way in self.ways], 1)


def glnet() -> nn.Sequential:
    """GLnet*: 318,203 parameters."""
    return nn.Sequential(
        *(conv(1, 24, 7, 2), nn.MaxPool2d(3, 2, 1), conv(24, 65, 1), conv(65, 128, 3)),
        *(nn.MaxPool2d(3, 2, 1), Inception(128, 32, (48, 64), (8, 16))),
        *(Inception(128, 64, (64, 96), (16, 48)), nn.MaxPool2d(3, 2, 1)),
        *(Inception(256, 96, (48, 104), (8, 24)), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(248, 10)),
    )


def resnet18() -> nn.Sequential:
    """ResNet18*: 697,322 parameters."""
    return nn.Sequential(
        *(normed(1, 32, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Block(32, 32), Block(32, 32)),
        *(Block(32, 64), Block(64, 64), Block(64, 128), Block(128, 128)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )


@dataclass(frozen=True)
class Case:
    """A row of the appendix's Table 3: a network, its sparse ratio (Table 2), and the ratio."""

    network: Callable[[], nn.Sequential]
    density: float
    target: int


CASES = {
    "vgg11": Case(vgg11, 0.162, 182),
    "glnet": Case(glnet, 0.159, 126),
    "resnet18": Case(resnet18, 0.102, 412),
}
RECIPES: dict[str, Callable[[float], dc.Recipe]] = {
    "smartidx": dc.recipes.smartidx,
    "sbc": lambda density: dc.recipes.sbc(density, codec="golomb"),
    "dgc": lambda density: dc.recipes.dgc(density, momentum=0.0, codec="golomb"),
}

# ------------------------------------------------------------------------------------ the training


@dataclass
class Energy:
    """Sums over steps of shares of the energy."""

    kept: float = 0.0
    of_top_k: float = 0.0

    def add(self, accumulated: Tensor, sent: Tensor) -> None:
        """Of one step, both [N]."""
        whole, lost = accumulated.square().sum(), (accumulated - sent).square().sum()
        largest = accumulated.square().topk(int(sent.count_nonzero())).values.sum()
        self.kept += float(1 - lost / whole)
        self.of_top_k += float(largest / whole)


def train(
    case: Case, recipe: dc.Recipe, args: argparse.Namespace
) -> tuple[dc.CompressionState, Energy, float]:
    """Train with a recipe: its state, the energy it kept, the accuracy on digits never seen."""
    torch.manual_seed(args.seed)
    network = case.network()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    images, labels = digits(args.pixels, mode="bilinear")
    images = images[:, :1]
    mine, unseen = shares(labels)
    state, energy = dc.CompressionState(network, recipe), Energy()
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.SGD(network.parameters(), args.lr)
    for _ in range(args.steps):
        some = mine[torch.randperm(len(mine))[: args.batch]]
        loss = F.cross_entropy(network(images[some]), labels[some])
        optimizer.zero_grad()
        loss.backward()
        gradients = {name: grad_of(p) for name, p in parameters.items()}
        owed = state.state_dict()["tensors"]["residual"]
        sent = state.reduce(gradients)
        accumulated = [g.flatten() + owed.get(name, 0.0) for name, g in gradients.items()]
        energy.add(torch.cat(accumulated), torch.cat([each.flatten() for each in sent.values()]))
        for name, p in parameters.items():
            p.grad = sent[name]
        optimizer.step()
    return state, energy, share_right(network, images[unseen], labels[unseen])


# -------------------------------------------------------------------------------- the time it takes


def times(rounds: int, density: float) -> dict[str, float]:
    """Median milliseconds of a step, by recipe."""
    torch.set_num_threads(1)
    model = large_resnet18()
    states = {name: dc.CompressionState(model, make(density)) for name, make in RECIPES.items()}
    gradients = [dict(zip(RESNET18_SHAPES, heavy_tailed(0, i), strict=True)) for i in range(2)]
    found: dict[str, list[float]] = {name: [] for name in states}
    for i in range(rounds + 1):
        for name, state in states.items():
            begin = time.perf_counter()
            state.reduce(gradients[i % 2])
            found[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(each[1:]) for name, each in found.items()}  # the first warms up


def tell_times(rounds: int, density: float) -> None:
    """Print them, and how they compare."""
    found = times(rounds, density)
    print(f"{RESNET18_NUMEL / 1e6:.1f} M parameters, density {density:.0%}, one thread")
    for name, milliseconds in found.items():
        print(f"{name}: {milliseconds:.1f} ms, {milliseconds / found['sbc']:.2f} x sbc")


def main() -> None:
    """Read the command line, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--density", type=float, help="(default: the appendix's sparse ratio)")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--pixels", type=int, default=28, help="a side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, help="measure the time of a step instead")
    args = parser.parse_args()
    if args.rounds:
        tell_times(args.rounds, args.density or 0.1)
        return
    for name in args.networks:
        case = CASES[name]
        density = args.density or case.density
        for recipe in args.recipes:
            state, energy, accuracy = train(case, RECIPES[recipe](density), args)
            stats = state.stats
            kept, of_top_k = energy.kept / args.steps, energy.of_top_k / args.steps
            print(
                f"{name} {recipe}: ratio {stats.ratio:.1f} (appendix {case.target}), "
                f"sent {stats.nonzeros / stats.elements:.2%}, {stats.bits_per_nonzero:.3f} bits an "
                f"entry, energy {kept:.3f} (top-k {of_top_k:.3f}), accuracy {accuracy:.1%}",
                flush=True,
            )
            for kind, package in stats.packages.items():
                if package.entries:
                    share = package.entries / stats.nonzeros
                    where, what = package.position_bits, package.value_bits
                    print(
                        f"    {kind}: {share:.2%} of the entries, position bits "
                        f"{where / package.entries:.3f}, value bits {what / package.entries:.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
