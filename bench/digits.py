"""Real gradients for the benches: ResNet-18 learns handwritten digits on several ranks.

The network is ResNet-18 as for CIFAR (`networks.py`: 11,173,962 parameters), the images are
scikit-learn's 1797 digits, doubled to 16 × 16. (At 8 × 8 the last stage would see single pixels,
eight ninths of its weights would have no gradient, and messages would look too small.)

Training is DDP's: one recipe's hook carries the gradients. From some step on, further recipes start
with a copy of its residuals and are given the very same gradients, but training does not take what
they give.
"""

# DDP inspects a hook's annotations: they must be objects, not strings.

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import ddp_compress as dc
from networks import RESNET18_SIZES, resnet18
from output import add_json
from ranks import on_ranks

Gradients = Mapping[str, Tensor]  # by parameter
Watch = Callable[[Sequence[dc.CompressionState], Gradients, Sequence[Gradients]], Any]
LAST = 20  # steps whose mean loss is the loss at the end


@dataclass(frozen=True)
class Training:
    """How to train."""

    ranks: int = 4
    steps: int = 300
    batch: int = 8  # of a rank
    lr: float = 0.1
    pixels: int = 16  # a side
    seed: int = 0
    others_from: int = 0  # the step from which further recipes are given the gradients

    def summary(self, outcome: "Outcome") -> str:
        """What a training did, in a line."""
        return (
            f"{self.steps} steps of {self.ranks} × {self.batch} images: loss "
            f"{outcome.losses[0]:.3f} at the first, {outcome.loss:.4f} over the last; "
            f"{outcome.accuracy:.1%} of unseen digits right"
        )


@dataclass(frozen=True)
class Outcome:
    """What a training gave: mean losses over ranks, accuracy on digits never seen, and all that
    was watched, [ranks][steps]."""

    losses: list[float]
    accuracy: float
    watched: list[list[Any]] = field(repr=False)

    @property
    def loss(self) -> float:
        """The mean over the last steps."""
        last = self.losses[-LAST:]
        return sum(last) / len(last)


# ------------------------------------------------------------------------------- the command line


def parser_of(
    doc: str, steps: int, warm_up: int, settle: int, measured: int
) -> argparse.ArgumentParser:
    """The command line of a bench whose further recipes join late; its numbers of steps."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    add = parser.add_argument
    add("--ranks", type=int, default=4)
    add("--steps", type=int, default=steps)
    add("--warm-up", type=int, default=warm_up, help="steps in which the density falls")
    add("--settle", type=int, default=settle, help="steps of all recipes before those measured")
    add("--measured", type=int, default=measured, help="steps, the last ones")
    add("--batch", type=int, default=8, help="of a rank")
    add("--lr", type=float, default=0.1)
    add_json(parser)
    return parser


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Training]:
    """The options of such a bench, and the training that they ask for."""
    options = parser.parse_args()
    others_from = options.steps - options.measured - options.settle
    if options.settle < 1 or others_from < options.warm_up:
        parser.error("--settle must be 1 or more and, with --measured, follow --warm-up")
    return options, Training(
        options.ranks, options.steps, options.batch, options.lr, others_from=others_from
    )


# --------------------------------------------------------------------------------------- the data


def digits(pixels: int, mode: str = "nearest") -> tuple[Tensor, Tensor]:
    """All images [1797, 3, pixels, pixels], of mean 0 and variance 1, and their classes."""
    from sklearn.datasets import load_digits

    flat, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(flat).float().view(-1, 1, 8, 8)
    images = F.interpolate((images - images.mean()) / images.std(), (pixels, pixels), mode=mode)
    return images.expand(-1, 3, -1, -1), torch.from_numpy(labels)


def shares(labels: Tensor, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
    """Which digits a rank trains on, and which nobody does: every fifth."""
    held_out = torch.arange(len(labels)) % 5 == 4
    return (~held_out).nonzero().flatten()[rank::ranks], held_out.nonzero().flatten()


# ------------------------------------------------------------------------------------ the training


def train(training: Training, recipes: Sequence[dc.Recipe], watch: Watch) -> Outcome:
    """Train on as many processes as there are ranks.

    Args:
        training: see there.
        recipes: the first carries the gradients, the others are given the same.
        watch: called with the states, this rank's gradients, and what every state made of all
            ranks' gradients, after every step that the others take part in. What it returns is
            collected.
    """
    ranks = on_ranks(training.ranks, train_on_rank, training, recipes, watch)
    losses = torch.stack([losses for losses, _, _ in ranks]).mean(0)
    return Outcome(losses.tolist(), ranks[0][1], [watched for _, _, watched in ranks])


def train_on_rank(
    training: Training, recipes: Sequence[dc.Recipe], watch: Watch
) -> tuple[Tensor, float, list[Any]]:
    """Train as one rank: its losses, the accuracy, and what was watched."""
    rank = dist.get_rank()
    torch.manual_seed(training.seed)
    model = DistributedDataParallel(resnet18())
    states = [dc.CompressionState(model, recipe) for recipe in recipes]
    parameters = dict(model.module.named_parameters())
    names = {id(p): name for name, p in parameters.items()}
    gradients: dict[str, Tensor] = {}

    def hook(state: dc.CompressionState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        for p, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            gradients[names[id(p)]] = gradient.clone()
        return dc.compress_hook(state, bucket)

    model.register_comm_hook(states[0], hook)
    optimizer = torch.optim.SGD(model.parameters(), training.lr)
    images, labels = digits(training.pixels)
    mine, unseen = shares(labels, rank, training.ranks)
    order = torch.Generator().manual_seed(training.seed * 1000 + rank)
    losses, watched = torch.zeros(training.steps), []
    for step in tqdm(range(training.steps), unit="step", disable=rank > 0):
        some = mine[torch.randperm(len(mine), generator=order)[: training.batch]]
        loss = F.cross_entropy(model(images[some]), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
        if step + 1 == training.others_from:
            for state in states[1:]:
                state.load_state_dict(copied(states[0], state))
        if step < training.others_from:
            continue
        came: list[Gradients] = [{name: grad_of(p) for name, p in parameters.items()}]
        came += [
            state.reduce({name: gradients[name] for name in RESNET18_SIZES}) for state in states[1:]
        ]
        watched.append(watch(states, gradients, came))
    accuracy = share_right(model.module, images[unseen], labels[unseen])
    return losses, accuracy, watched


def copied(state: dc.CompressionState, other: dc.CompressionState) -> dict[str, Any]:
    """A state's checkpoint as one of another recipe, which may keep fewer tensors, or more."""
    saved = state.state_dict()
    kept = {
        slot: saved["tensors"].get(slot)
        or {n: torch.zeros_like(t, dtype=dtype) for n, t in saved["tensors"]["residual"].items()}
        for slot, dtype in other.recipe.tensors.items()
    }
    return saved | {"recipe": other.recipe.name, "tensors": kept, "checksum": None}


def grad_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@torch.no_grad()
def share_right(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    return (network(images).argmax(1) == labels).float().mean().item()
