"""Steps of stc, sign, hgc and smartidx beside their papers', each in a few lines of plain torch.

An oracle sees all ranks at once. Of what every rank has accumulated it says what the rank sends,
and what all get for it. Around it `follows` is what the four share: error feedback, after a
momentum that is masked where something was sent.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddp_compress import CompressionState, Recipe, recipes

Named = dict[str, Tensor]
Oracle = Callable[[list[Named], Named, int], tuple[list[Named], Named]]

DENSITY = 0.1
BLOCK = 64
BETA = 0.9
STEPS = 5


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(20, 10))


NUMEL = sum(p.numel() for p in small_model().parameters())

# ---------------------------------------------------------------------------------------- oracles


def count(values: Tensor) -> int:
    return max(1, round(DENSITY * len(values)))


def largest(values: Tensor) -> Tensor:
    """All but the k of largest magnitude zeroed; of equals the first are taken."""
    top = values.abs().sort(descending=True, stable=True).indices[: count(values)]
    return torch.zeros_like(values).index_copy(0, top, values[top])


def mean_magnitude(values: Tensor) -> Tensor:
    """Rounded once: of equal values it is that value, and error feedback leaves zeros."""
    return values.double().abs().mean().nan_to_num().float()


def ternary(values: Tensor) -> Tensor:
    """STC, Alg. 1: the mean magnitude of what is not zero, with its signs."""
    return values.sign() * mean_magnitude(values[values != 0])


def signs(values: Tensor) -> Tensor:
    """EF-signSGD, Alg. 1, in blocks: the sign times the block's L1 norm over its size."""
    return torch.cat([part.sign() * mean_magnitude(part) for part in values.split(BLOCK)])


def ranges(values: Tensor, world_size: int) -> Iterator[Tensor]:
    """The W ranges of a parameter that ranks own, each a server for its own."""
    edges = [len(values) * rank // world_size for rank in range(world_size + 1)]
    return (values[a:b] for a, b in pairwise(edges))


def both_ways(select: Callable[[Tensor], Tensor], quantize: Callable[[Tensor], Tensor]) -> Oracle:
    """STC, Alg. 2; Zheng et al., Alg. 2: up, mean, and down with a residual of the server's.

    The owner of a range is its server: what shares a magnitude lies in one range.
    """

    def oracle(accumulated: list[Named], kept: Named, step: int) -> tuple[list[Named], Named]:
        world_size, sent, down = len(accumulated), [], {}
        for each in accumulated:
            parts = {n: ranges(select(values), world_size) for n, values in each.items()}
            sent.append({n: torch.cat([*map(quantize, part)]) for n, part in parts.items()})
        for name, residual in kept.items():
            whole = residual + sum(each[name] for each in sent) / world_size
            down[name] = torch.cat([quantize(select(part)) for part in ranges(whole, world_size)])
            kept[name] = whole - down[name]
        return sent, down

    return oracle


def by_name(flat: Tensor) -> Named:
    sizes = {name: p.numel() for name, p in small_model().named_parameters()}
    return dict(zip(sizes, flat.split([*sizes.values()]), strict=True))


def mean_of(sent: list[Named]) -> Named:
    return {name: torch.stack([each[name] for each in sent]).mean(0) for name in sent[0]}


def sign_to_all(accumulated: list[Named], kept: Named, step: int) -> tuple[list[Named], Named]:
    """EF-signSGD, Alg. 1, on every rank; their mean."""
    sent = [{name: signs(values) for name, values in each.items()} for each in accumulated]
    return sent, mean_of(sent)


def hgc(accumulated: list[Named], kept: Named, step: int) -> tuple[list[Named], Named]:
    """§3.1: one rank's top-k is the mask of all; levels of equal count, eq. 3; averages, eq. 4."""
    flat = [torch.cat([*each.values()]) for each in accumulated]
    mask = largest(flat[step % len(flat)]) != 0
    sent = []
    for values in flat:
        levels = torch.zeros_like(values)
        for side in (mask & (values > 0), mask & (values < 0)):
            at = side.nonzero().flatten()
            for level in at[values[at].abs().argsort()].tensor_split(2):
                levels[level] = values[level].mean()
        sent.append(by_name(levels))
    mean = mean_of(sent)
    for name, masked in by_name(mask).items():
        average = BETA * kept[name] + (1 - BETA) * mean[name]
        kept[name] = torch.where(masked, average, kept[name])
    return sent, mean


def smartidx(accumulated: list[Named], kept: Named, step: int) -> tuple[list[Named], Named]:
    """Appendix, "Details in each package": kernels share a position, and perhaps their signs."""
    sent = []
    for each in accumulated:
        kernels, linear = each["0.weight"].view(-1, 9), each["1.weight"]
        heaviest = kernels.abs().sum(1).topk(sum(PLANTED)).indices
        patterns = kernels[heaviest].sign() * kernels[heaviest, :1].sign()
        alike = (patterns @ patterns.T == 9).sum(1)  # how many have the pattern of each
        of_kernels = torch.zeros_like(kernels)
        for often in PLANTED:  # a package of patterns, where one is worth its bits, and one without
            package = heaviest[alike == often]
            of_kernels[package] = kernels[package].sign() * mean_magnitude(kernels[package])
        single = ternary(torch.where(linear.abs() > 1, linear, 0))
        sent.append(zeros() | {"0.weight": of_kernels.flatten(), "1.weight": single})
    return sent, mean_of(sent)


# -------------------------------------------------------------------------------------- gradients

PLANTED = (6, 3)  # kernels of one pattern of signs, and of another
SINGLES = 20


def normal(step: int, rank: int) -> Named:
    generator = torch.Generator().manual_seed(100 * step + rank)
    named = small_model().named_parameters()
    return {name: torch.randn(p.numel(), generator=generator) for name, p in named}


def planted(step: int, rank: int) -> Named:
    """A few heavy kernels and single entries, as many as the density sends; all else is light."""
    grads = {name: 0.001 * values for name, values in normal(step, rank).items()}
    generator = torch.Generator().manual_seed(1000 + 100 * step + rank)
    kernels, linear = grads["0.weight"].view(-1, 9), grads["1.weight"]
    patterns = torch.tensor([[1.0] * 9, [1.0, -1.0, -1.0] * 3])
    each = patterns.repeat_interleave(torch.tensor(PLANTED), 0)
    turned = torch.randint(2, (len(each), 1), generator=generator) * 2 - 1
    places = torch.randperm(len(kernels), generator=generator)[: len(each)]
    kernels[places] += turned * each * (8 + torch.rand(each.shape, generator=generator))
    places = torch.randperm(len(linear), generator=generator)[:SINGLES]
    linear[places] += linear[places].sign() * (8 + torch.rand(SINGLES, generator=generator))
    return grads


# ------------------------------------------------------------------------------------------ tests


@dataclass(frozen=True)
class Paper:
    """A recipe, its oracle, and the tensor that the oracle keeps."""

    recipe: Recipe
    oracle: Oracle
    keeps: str | None = None
    gradients: Callable[[int, int], Named] = normal


def zeros() -> Named:
    return by_name(torch.zeros(NUMEL))


def follows(paper: Paper) -> None:
    """Means and memory of several steps on this rank are the oracle's."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    state, mu = CompressionState(small_model(), paper.recipe), paper.recipe.memory.momentum_at(0)
    residuals = [zeros() for _ in range(world_size)]
    momenta = [zeros() for _ in range(world_size)]
    kept = zeros()
    for step in range(STEPS):
        given = [paper.gradients(step, each) for each in range(world_size)]
        for momentum, residual, grads in zip(momenta, residuals, given, strict=True):
            for name, grad in grads.items():
                momentum[name] = mu * momentum[name] + grad
                residual[name] += momentum[name]
        sent, mean = paper.oracle(residuals, kept, step)
        for momentum, residual, gone in zip(momenta, residuals, sent, strict=True):
            for name, values in gone.items():
                residual[name] = residual[name] - values
                momentum[name] = torch.where(values == 0, momentum[name], 0)
        torch.testing.assert_close(state.reduce(given[rank]), mean)
        memory = state.memory()
        torch.testing.assert_close(memory["residual"], residuals[rank])
        if mu:
            torch.testing.assert_close(memory["momentum"], momenta[rank])
        if paper.keeps == "owner_residual":  # a rank's own ranges alone, and zeros elsewhere
            torch.testing.assert_close(memory[paper.keeps], owned_by(rank, kept))
        elif paper.keeps:
            torch.testing.assert_close(memory[paper.keeps], kept)


def owned_by(rank: int, named: Named) -> Named:
    owned = {}
    for name, values in named.items():
        parts = ranges(values, dist.get_world_size())
        owned[name] = torch.cat([part * (owner == rank) for owner, part in enumerate(parts)])
    return owned


OF_PLANTED = (9 * sum(PLANTED) + SINGLES) / NUMEL
PAPERS = {
    "stc": Paper(recipes.stc(DENSITY), both_ways(largest, ternary), "owner_residual"),
    "stc-momentum": Paper(
        recipes.stc(DENSITY, momentum=0.9), both_ways(largest, ternary), "owner_residual"
    ),
    "sign": Paper(recipes.sign(BLOCK), sign_to_all),
    "sign-sharded": Paper(
        recipes.sign(BLOCK, "sharded"), both_ways(torch.clone, signs), "owner_residual"
    ),
    "hgc": Paper(recipes.hgc(DENSITY, bits=2, predictor=BETA), hgc, "average"),
    "hgc-momentum": Paper(recipes.hgc(DENSITY, bits=2, momentum=0.9), hgc),
    "smartidx": Paper(recipes.smartidx(OF_PLANTED), smartidx, gradients=planted),
    "smartidx-momentum": Paper(
        recipes.smartidx(OF_PLANTED, momentum=0.9), smartidx, gradients=planted
    ),
}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", PAPERS)
def test_steps_are_those_of_the_paper(ranks, name, world_size):
    ranks.run(world_size, of_paper, name)


def of_paper(name: str) -> None:
    follows(PAPERS[name])
