"""Ways to exchange gradients: baselines, recipes and peers' methods, by names and words."""

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ddp_compress as dc
from links_peer import Peer
from links_peers import PEERS

OF_ATTACH = ("flush_bytes", "min_numel", "within")


@dataclass(frozen=True)
class Method:
    """One way of exchanging gradients: the name of a baseline, a recipe or a peer's method."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()  # what makes a recipe, or a peer, and of `attach`

    @property
    def label(self) -> str:
        """The name, the options and the density."""
        words = dict(self.options)
        density = words.pop("density", "")
        return " ".join([self.name, *(f"{n}={v}" for n, v in words.items()), str(density)]).strip()

    @property
    def is_recipe(self) -> bool:
        return self.name in dc.recipes.__all__

    def recipe(self) -> dc.Recipe:
        return make(self.name, {n: v for n, v in self.options if n not in OF_ATTACH})

    def peer(self) -> Peer | None:
        """A new one, where the method is a peer's."""
        return PEERS[self.name](**dict(self.options)) if self.name in PEERS else None

    @property
    def of_attach(self) -> dict[str, Any]:
        """What `attach` is called with."""
        return {name: value for name, value in self.options if name in OF_ATTACH}


DENSE = Method("dense")
NO_EXCHANGE = Method("no exchange")
DENSE_WITHIN = Method("dense", (("within", "node"),))
BASELINES = {"dense,within=node": DENSE_WITHIN}  # that one can ask for


def methods(texts: Sequence[str], densities: Sequence[float]) -> Iterator[Method]:
    """Dense and no exchange, then what was asked for, every recipe at every density.

    Args:
        texts: of `BASELINES`, or the name and words of a recipe, such as
            "majority_vote,value_bits=4", or of one of `PEERS`.
        densities: of those that have one and are not given their own.

    Raises:
        ValueError: for a name or a word that there is not.
    """
    yield DENSE
    yield NO_EXCHANGE
    for text in texts:
        if text in BASELINES:
            yield BASELINES[text]
            continue
        name, options = split(text)
        words = inspect.signature(PEERS.get(name) or recipe_function(name)).parameters
        free = "density" in words and "density" not in options
        for each in [{"density": d} for d in densities] if free else [{}]:
            method = Method(name, tuple((options | each).items()))
            try:
                method.peer() or method.recipe()  # what is wrong shows before the ranks start
            except (TypeError, ValueError) as error:
                raise ValueError(f"--recipes: {text}: {error}") from None
            yield method


def split(text: str) -> tuple[str, dict[str, Any]]:
    """A recipe's name and words. Those behind ``down=``, which comes last, are of the way back."""
    ours, answers, down = text.partition(",down=")
    name, *words = ours.split(",")
    return name, dict(map(word, words)) | ({"down": down} if answers else {})


def word(text: str) -> tuple[str, Any]:
    """One option of a recipe, such as ``variant=add_drop`` or ``bits=2``."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--recipes: expected WORD=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def make(name: str, options: dict[str, Any]) -> dc.Recipe:
    """A recipe from what can travel to the ranks as text."""
    if "down" in options:
        options = options | {"down": make(*split(options["down"]))}
    return recipe_function(name)(**options)


def recipe_function(name: str) -> Callable[..., dc.Recipe]:
    if name not in dc.recipes.__all__:
        expected = ", ".join([*BASELINES, *PEERS, *dc.recipes.__all__])
        raise ValueError(f"--recipes: expected {expected}; got {name!r}")
    function: Callable[..., dc.Recipe] = getattr(dc.recipes, name)
    return function
