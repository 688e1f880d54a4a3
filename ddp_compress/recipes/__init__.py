"""Algorithms from the literature, each a short file that names its parts."""

import inspect
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
from ddp_compress.recipes.text import split, value_of
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
    unknown = next((word for word in options if word not in _words(name)), None)
    if unknown is not None:
        others = [each for each in RECIPES if unknown in _words(each)]
        takers = f"; {', '.join(others)} take that" if others else ""
        raise TypeError(
            f"{name}() got an unexpected keyword argument {unknown!r}: it takes "
            f"{', '.join(_words(name))}{takers}"
        )
    return RECIPES[name](**options)


def from_text(text: str, **defaults: Any) -> Recipe:
    """Make a recipe from a command line's words: ``NAME[,WORD=VALUE...]``.

    What stands behind ``down=``, which comes last, are a recipe's words again.

    Args:
        text: such as ``"topk,density=0.001"`` or ``"rotated,keep=0.5,down=rotated,bits=5"``.
        defaults: arguments that the text does not give; those that the recipe does not take, and
            those that are None, are left out.

    Raises:
        ValueError: no recipe has this name, or a word is not of the form WORD=VALUE.
        TypeError: the recipe takes no such word, or not such a value.

    Example:
        >>> from_text("sbc,codec=golomb", density=0.01, bits=4).codec
        Golomb()
    """
    name, words = split(text)
    check_one_of("recipe", name, RECIPES)
    takes = _words(name)
    known = {word: value for word, value in defaults.items() if word in takes and value is not None}
    return by_name(name, **known | dict(map(word, words)))


def word(text: str) -> tuple[str, Any]:
    """One argument of a recipe, such as ``bits=2``, ``codec=golomb`` or ``value_dtype=float16``.

    Raises:
        ValueError: it is not of the form WORD=VALUE; or as `from_text`, of a recipe for the way
            back.

    Example:
        >>> word("down=sbc")[1].name
        'sbc'
    """
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"expected WORD=VALUE, such as density=0.01, got {text!r}")
    return name, from_text(value) if name == "down" else value_of(value, name)


def _words(name: str) -> list[str]:
    """What a recipe takes."""
    return list(inspect.signature(RECIPES[name]).parameters)
