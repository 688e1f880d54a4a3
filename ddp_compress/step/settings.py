"""What stays the same from step to step."""

from dataclasses import dataclass

from ddp_compress.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """What a state was made with; see `CompressionState`."""

    recipe: Recipe
    min_numel: int
    flush_bytes: int

    def describe(self, density: float, step: int) -> str:
        """What all ranks must share of them in a step, in words."""
        recipe, memory = self.recipe, self.recipe.memory
        options = ((n, value) for n, value in vars(recipe.select).items() if n != "density")
        select = ", ".join(f"{name}={value}" for name, value in options)
        return (
            f"recipe {recipe.name}, density {density:.9g}, "
            f"{type(memory).__name__}(momentum={memory.momentum_at(step):.9g}, "
            f"clip={memory.clip}), {type(recipe.select).__name__}({select}), "
            f"{recipe.body}, {recipe.quantize}, {recipe.codec}, {recipe.exchange}, "
            f"step {step}, min_numel {self.min_numel}, flush_bytes {self.flush_bytes}"
        )
