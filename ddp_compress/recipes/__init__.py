"""Algorithms from the literature, each a short file that names its parts."""

from collections.abc import Callable
from typing import Any

from ddp_compress.checks import check_one_of
from ddp_compress.recipe import Recipe
from ddp_compress.recipes.dgc import dgc
from ddp_compress.recipes.hgc import hgc
from ddp_compress.recipes.majority_vote import majority_vote
from ddp_compress.recipes.rotated import rotated
from ddp_compress.recipes.sbc import sbc
from ddp_compress.recipes.sign import sign
from ddp_compress.recipes.smartidx import smartidx
from ddp_compress.recipes.stc import stc
from ddp_compress.recipes.topk import topk

__all__ = ["dgc", "hgc", "majority_vote", "rotated", "sbc", "sign", "smartidx", "stc", "topk"]

RECIPES: dict[str, Callable[..., Recipe]] = {
    recipe.__name__: recipe
    for recipe in (dgc, hgc, majority_vote, rotated, sbc, sign, smartidx, stc, topk)
}


def by_name(name: str, **options: Any) -> Recipe:
    """Make a recipe by its name.

    Args:
        name: one of `RECIPES`.
        options: the arguments of that recipe.

    Raises:
        ValueError: no recipe has this name.
        TypeError: the name is no string, or the recipe takes no such option.

    Example:
        >>> by_name("sbc", density=0.001).name
        'sbc'
    """
    check_one_of("recipe", name, RECIPES)
    return RECIPES[name](**options)
