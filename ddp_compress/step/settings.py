"""What stays the same from step to step."""

from dataclasses import dataclass, fields, is_dataclass

from ddp_compress.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """What a state was made with; see `CompressionState`."""

    recipe: Recipe
    min_numel: int
    flush_bytes: int

    def describe(self, density: float, step: int) -> str:
        """What all ranks must share of them in a step, in words."""
        recipe = self.recipe
        parts = (recipe.body, recipe.quantize, recipe.codec, recipe.exchange)
        return (
            f"recipe {recipe.name}, density {density:.9g}, {_words(recipe.memory, step)}, "
            f"{_words(recipe.select, step)}, {', '.join(map(repr, parts))}, "
            f"step {step}, min_numel {self.min_numel}, flush_bytes {self.flush_bytes}"
        )


def _words(part: object, step: int) -> str:
    """A part as its `repr`, schedules by their value in a step, and without its density."""
    if not is_dataclass(part):
        return repr(part)
    options = {each.name: getattr(part, each.name) for each in fields(part)}
    options.pop("density", None)
    values = (f"{n}={value(step) if callable(value) else value}" for n, value in options.items())
    return f"{type(part).__name__}({', '.join(values)})"
