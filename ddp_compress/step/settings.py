"""What stays the same from step to step."""

from dataclasses import dataclass, fields, is_dataclass

from ddp_compress.recipe import Recipe
from ddp_compress.transport.frame import VERSION


@dataclass(frozen=True)
class Settings:
    """What a state was made with; see `CompressionState`."""

    recipe: Recipe
    min_numel: int
    flush_bytes: int

    def describe(self, density: float, step: int) -> str:
        """What all ranks must share of them in a step, in words."""
        recipe, momentum = self.recipe, self.recipe.memory.momentum_at(step)
        parts = (recipe.body, recipe.quantize, recipe.codec, recipe.exchange)
        return (
            f"wire version {VERSION}, recipe {recipe.name}, density {density:.9g}, "
            f"momentum={momentum:.9g}, {_words(recipe.memory)}, {_words(recipe.select)}, "
            f"{', '.join(map(repr, parts))}, "
            f"step {step}, min_numel {self.min_numel}, flush_bytes {self.flush_bytes}"
        )


def _words(part: object) -> str:
    """A part and its options, but for those that schedules may change; functions by their names."""
    if is_dataclass(part):
        options = {each.name: getattr(part, each.name) for each in fields(part)}
    else:
        options = dict(getattr(part, "__dict__", {}))
    told = [name for name in options if name not in ("density", "momentum")]
    values = (f"{name}={getattr(options[name], '__name__', options[name])}" for name in told)
    return f"{type(part).__name__}({', '.join(values)})"
