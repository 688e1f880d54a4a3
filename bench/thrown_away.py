"""What becomes of gradients that were sent and are thrown away, or sent in several parts.

    python bench/thrown_away.py
    python bench/thrown_away.py --recipes topk sbc --seeds 0 1

Error feedback takes every gradient that it has sent for applied. Two ranks train small models:

* GAN: the loss of the generator G leaves gradients in the discriminator D, which are zeroed unused,
  as in DCGAN's tutorial. D's accuracy at telling fresh fakes from real samples in the end: by the
  tutorial; with ``state_d.discard()`` after G's pass; and where that pass leaves nothing of D in a
  message, by ``D.module(fake)`` or in ``D.no_sync()``.
* Restore: a search for the learning rate takes 30 steps up to one that diverges, then restores
  model and optimizer, and the state too ("discard") or not. Loss after 60 steps from there.
* Skip: one of 60 batches is a thousand times too large, and steps are skipped by the norm of their
  gradient, with ``state.discard()`` or without. How many are.
* Passes: loss after 60 steps of 4 passes each, in ``no_sync`` up to the last, or all synchronized.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import ddp_compress as dc
from output import add_json, show, write_json
from ranks import on_ranks

RANKS = 2
STEPS = 60  # but of the GAN
GAN_STEPS = 300
SPIKE = 1000.0
recipes = dc.recipes
RECIPES: dict[str, Callable[[], dc.Recipe | None]] = {
    "dense": lambda: None,
    "topk": lambda: recipes.topk(0.01),
    "dgc": lambda: recipes.dgc(0.01),
    "sbc": lambda: recipes.sbc(0.01),
    "vote": lambda: recipes.majority_vote(0.01),
    "hgc": lambda: recipes.hgc(0.01),
    "stc": lambda: recipes.stc(0.01),
    "rotated": lambda: recipes.rotated(bits=4, error_feedback=True),
    "smartidx": lambda: recipes.smartidx(0.1),
    "sign": lambda: recipes.sign(),
}


MOMENTUM = {"dgc": 0.9}  # a recipe's own: a step is then the sum of ten


def mlp(*sizes: int) -> nn.Sequential:
    pairs = itertools.pairwise(sizes)
    layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers[:-1])


def wrap(module: nn.Module, recipe: str) -> tuple[DistributedDataParallel, Any]:
    """A DDP model, and its state; None where gradients are dense."""
    model = DistributedDataParallel(module)
    made = RECIPES[recipe]()
    return model, dc.attach(model, made) if made else None


# ------------------------------------------------------------------------------------------- GAN


def real(count: int) -> Tensor:
    """Samples [count, 32] of eight clouds."""
    centres = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    return centres[torch.randint(8, (count,))] + 0.3 * torch.randn(count, 32)


def judge(d: nn.Module, samples: Tensor, truth: float) -> Tensor:
    scores = d(samples).squeeze(1)
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, truth))


def gan(recipe: str, seed: int, way: str) -> float:
    """D's accuracy after training it against G."""
    torch.manual_seed(seed)
    g, _ = wrap(mlp(16, 64, 32), recipe)
    d, state_d = wrap(mlp(32, 128, 128, 1), recipe)
    torch.manual_seed(1000 * seed + dist.get_rank())
    share = 1 - MOMENTUM.get(recipe, 0.0)
    sgd_g = torch.optim.SGD(g.parameters(), lr=0.001 * share)
    sgd_d = torch.optim.SGD(d.parameters(), lr=0.05 * share)
    for _ in range(GAN_STEPS):
        sgd_d.zero_grad()
        fake = g(torch.randn(64, 16))
        both = d(torch.cat([real(64), fake.detach()])).squeeze(1)
        truth = torch.cat([torch.ones(64), torch.zeros(64)])
        F.binary_cross_entropy_with_logits(both, truth).backward()
        sgd_d.step()
        sgd_g.zero_grad()
        with d.no_sync() if way == "no_sync" else nullcontext():
            judge(d.module if way == "module" else d, fake, truth=1.0).backward()
        sgd_g.step()
        if way == "discard":
            state_d.discard()
    with torch.no_grad():
        found, missed = d.module(real(2000)) > 0, d.module(g.module(torch.randn(2000, 16))) > 0
        return (found.float().mean().item() + 1 - missed.float().mean().item()) / 2


# --------------------------------------------------------------------------- a model for the rest


class Task:
    """A student learns from a teacher's answers.

    Args:
        recipe: a name in `RECIPES`.
        seed: of everything.
        lr: of SGD.
    """

    def __init__(self, recipe: str, seed: int, lr: float = 0.02) -> None:
        torch.manual_seed(seed)
        self._teacher = mlp(32, 64, 4)
        self.model, self.state = wrap(mlp(32, 128, 4), recipe)
        lr *= 1 - MOMENTUM.get(recipe, 0.0)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr)
        torch.manual_seed(1000 * seed + dist.get_rank())

    def loss(self, size: int = 64, scale: float = 1.0) -> Tensor:
        with torch.no_grad():
            inputs = torch.randn(size, 32)
            answers = 3 * self._teacher(inputs)
        return F.mse_loss(self.model(inputs * scale), answers)

    def validate(self) -> float:
        with torch.no_grad():
            return self.loss(size=2000).item()

    def train(self, steps: int) -> float:
        for _ in range(steps):
            self.sgd.zero_grad()
            self.loss().backward()
            self.sgd.step()
        return self.validate()


def restore(recipe: str, seed: int, way: str) -> float:
    """The loss after a search for the learning rate and a restore."""
    task = Task(recipe, seed)
    task.train(10)
    parts: list[Any] = [task.model, task.sgd] + ([task.state] if way == "discard" else [])
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    for step in range(30):
        task.sgd.param_groups[0]["lr"] = 1e-3 * 1.4**step  # up to 17
        task.train(1)
    for part, content in zip(parts, saved, strict=True):
        part.load_state_dict(content)
    return task.train(STEPS)


def skip(recipe: str, seed: int, way: str) -> float:
    """How many steps are skipped for one bad batch."""
    task = Task(recipe, seed)
    usual = skipped = 0.0
    for step in range(STEPS):
        task.sgd.zero_grad()
        task.loss(scale=SPIKE if step == 15 else 1.0).backward()
        norm = nn.utils.clip_grad_norm_(task.model.parameters(), float("inf")).item()
        if step < 15:
            usual = max(usual, norm)
        elif norm > 3 * usual:
            skipped += 1
            if way == "discard":
                task.state.discard()
            continue
        task.sgd.step()
    return skipped


def passes(recipe: str, seed: int, way: str) -> float:
    """The loss after steps of four passes."""
    task = Task(recipe, seed)
    for _ in range(STEPS):
        task.sgd.zero_grad()
        for number in range(4):
            with task.model.no_sync() if way == "no_sync" and number < 3 else nullcontext():
                (task.loss(size=16) / 4).backward()
        task.sgd.step()
    return task.validate()


# ----------------------------------------------------------------------------------------- tables

EXPERIMENTS: dict[str, tuple[Callable[[str, int, str], float], tuple[str, ...]]] = {
    "GAN": (gan, ("tutorial", "discard", "module", "no_sync")),
    "restore": (restore, ("as is", "discard")),
    "skip": (skip, ("as is", "discard")),
    "passes": (passes, ("synced", "no_sync")),
}


def mean_of(experiment: str, recipe: str, way: str, seeds: Sequence[int]) -> float | str:
    """Over the seeds; or what was refused."""
    work, _ = EXPERIMENTS[experiment]
    try:
        figures = [on_ranks(RANKS, work, recipe, seed, way)[0] for seed in seeds]
    except Exception as error:
        if "ValueError" not in str(error):
            raise
        return "refused"
    return sum(figures) / len(figures)


def ways(experiment: str, recipe: str) -> list[str]:
    """What can be written; without a state there is nothing to discard."""
    return [way for way in EXPERIMENTS[experiment][1] if recipe != "dense" or way != "discard"]


def render(experiment: str, found: dict[str, dict[str, float | str]]) -> Table:
    table = Table("", title=experiment)
    for way in EXPERIMENTS[experiment][1]:
        table.add_column(way, justify="right")
    for recipe, figures in found.items():
        cells = (figures.get(way, "") for way in EXPERIMENTS[experiment][1])
        table.add_row(recipe, *(c if isinstance(c, str) else f"{c:.3g}" for c in cells))
    return table


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    add("--seeds", type=int, nargs="+", default=[0])
    add_json(parser)
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float | str]]] = {}
    rows = tqdm([(e, r, w) for e in EXPERIMENTS for r in options.recipes for w in ways(e, r)])
    for experiment, recipe, way in rows:
        rows.set_description(f"{experiment}, {recipe}, {way}")
        row = found.setdefault(experiment, {}).setdefault(recipe, {})
        row[way] = mean_of(experiment, recipe, way, options.seeds)
    show(*(render(experiment, figures) for experiment, figures in found.items()))
    write_json(options.json, found)


if __name__ == "__main__":
    main()
