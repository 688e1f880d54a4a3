"""Ways to exchange gradients: dense, PyTorch's own hooks, and recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import recipes
from ddp_compress.hook import Passes, local_hook
from ddp_compress.recipe import Recipe

DEFAULT = ("topk", "dgc", "sbc", "hgc", "majority_vote", "stc", "sign", "rotated")
POWERSGD_RANK = 4
DENSE_STEPS = 2  # of PowerSGD, the fewest that it takes

Parameters = Sequence[Tensor]


@dataclass(frozen=True)
class Method:
    """A way to exchange gradients: a baseline or a recipe.

    Args:
        name: how it is asked for.
        what: it does to gradients, in a line.
        kept: bytes from step to step, for every element.
        recipe: None for a baseline.
        register: a baseline's hook on a DDP model; None for none.
        payload: bytes that a baseline averages in an all-reduce, of parameters of these shapes.
        one_bucket: whether all gradients must come in one.
    """

    name: str
    what: str
    kept: float = 0.0
    recipe: Recipe | None = None
    register: Callable[[DistributedDataParallel], None] | None = None
    payload: Callable[[Parameters], float] = lambda parameters: 0.0
    one_bucket: bool = False


def _whole(parameters: Parameters) -> float:
    return float(sum(each.numel() * each.element_size() for each in parameters))


def _half(parameters: Parameters) -> float:
    return 2.0 * sum(each.numel() for each in parameters)


def _fp16(model: DistributedDataParallel) -> None:
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)


def _thin(parameters: Parameters) -> float:
    """Of every matrix two thin ones, unless they would be more than half of it."""
    numel = 0
    for each in parameters:
        rows = max(1, len(each)) if each.dim() > 1 else 1
        thin = (rows + each.numel() // rows) * POWERSGD_RANK
        numel += thin if each.dim() > 1 and 2 * thin < each.numel() else each.numel()
    return 4.0 * numel


def _powersgd(model: DistributedDataParallel) -> None:
    state = powerSGD_hook.PowerSGDState(
        process_group=model.process_group,
        matrix_approximation_rank=POWERSGD_RANK,
        start_powerSGD_iter=DENSE_STEPS,
    )
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def _no_exchange(model: DistributedDataParallel) -> None:
    model.register_comm_hook(Passes(), local_hook)


DENSE = Method("dense", "averages gradients as they are", payload=_whole)
FP16 = Method("fp16", "PyTorch's, rounds to 16 bits", register=_fp16, payload=_half)
POWERSGD = Method(
    "powersgd",
    f"PyTorch's, of rank {POWERSGD_RANK}, all gradients in one bucket: products of thin matrices",
    kept=4.0,
    register=_powersgd,
    payload=_thin,
    one_bucket=True,
)
NO_EXCHANGE = Method("no exchange", "hands the bucket back as it is", register=_no_exchange)
UNCOMPRESSED = (DENSE, FP16)


def baselines(parameters: Parameters) -> list[Method]:
    """What a user has without us, of these parameters.

    PyTorch's PowerSGD needs numpy, and all gradients in one bucket, as of one dtype alone.
    """
    one_dtype = len({each.dtype for each in parameters}) == 1
    thin = [POWERSGD] if one_dtype and find_spec("numpy") else []
    return [*UNCOMPRESSED, *thin]


def of_recipes(chosen: Iterable[str | Recipe], density: float | None) -> list[Method]:
    """Methods of recipes.

    Args:
        chosen: recipes, or texts such as "sbc" and "topk,density=0.01".
        density: of those given as texts that have one and are not given their own; None for each
            recipe's own.

    Raises:
        ValueError, TypeError: a text names no recipe, or a word that it does not take.
    """
    return [_of_recipe(each, density) for each in chosen]


def _of_recipe(chosen: str | Recipe, density: float | None) -> Method:
    recipe = chosen if isinstance(chosen, Recipe) else recipes.from_text(chosen, density=density)
    name = recipe.name if isinstance(chosen, Recipe) else chosen
    function = recipes.RECIPES.get(recipe.name)
    what = (function.__doc__ or "").splitlines()[0] if function else ""
    return Method(name, what, _kept(recipe), recipe)


def _kept(recipe: Recipe) -> float:
    """Bytes an element of all that a recipe keeps; fp32 where memory chooses."""
    dtypes: Sequence[torch.dtype | None] = list(recipe.tensors.values())
    return float(sum((dtype or torch.float32).itemsize for dtype in dtypes))
