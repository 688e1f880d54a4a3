"""Messages of all entries, which a quantizer reads and adds where they lie."""

from collections.abc import Sequence

from torch import Tensor

from ddp_compress.body import Listed
from ddp_compress.checks import named
from ddp_compress.exchange.separate import SeparateLists
from ddp_compress.message.context import Context
from ddp_compress.message.encoded import EncodedEntries
from ddp_compress.message.message import Message
from ddp_compress.message.random_key import RandomKey
from ddp_compress.ops.devices import to_device
from ddp_compress.ops.finite import all_finite
from ddp_compress.recipe import QuantizeRuns, Recipe
from ddp_compress.select import All
from ddp_compress.stats import Stats


def can_add(recipe: Recipe) -> bool:
    """Whether a recipe's quantizer adds all entries without decoding them first.

    Example:
        >>> from ddp_compress import recipes
        >>> can_add(recipes.sign()), can_add(recipes.topk())
        (True, False)
    """
    return (
        type(recipe.select) is All
        and type(recipe.body) is Listed
        and isinstance(recipe.quantize, QuantizeRuns)
    )


class AllEntries(SeparateLists):
    """What ranks send of a message; the bytes are those of `SeparateLists`.

    Args:
        message: on its way.
        recipe: one that `can_add`.
        stats: where to count.
        rank: this one.
    """

    def __init__(self, message: Message, recipe: Recipe, stats: Stats, rank: int) -> None:
        super().__init__(message, recipe, stats, rank)
        assert isinstance(recipe.quantize, QuantizeRuns)
        self._quantize = recipe.quantize
        self._runs = message.plan.tables.runs
        key = RandomKey(message.plan.group_names, message.step, rank)
        self._context = Context(message.plan.ks, key)

    def _selected(self) -> Tensor | None:
        message = self._message
        # Unused ones travel as zeros, whatever memory keeps of them.
        if message.unused is not None or not self._runs:
            return super()._selected()
        sums = message.sums()
        if message.limit is not None and not all(map(all_finite, sums)):
            return None
        starts = message.plan.starts
        values = [
            message.clamped(sums[run.chunk][run.start - starts[run.chunk] :][: run.end - run.start])
            for run in self._runs
        ]
        data = self._quantize.encode_runs(values, self._runs, self._context)
        if data is None or not message.has_finite_uncompressed():
            return None
        self._stats.entry_list("individual", message.plan.k, 0, 8 * len(data))
        return data

    def decode(self, every: Sequence[Tensor]) -> list[EncodedEntries]:
        """What every rank has sent, of bodies without uncompressed parameters.

        Raises:
            ValueError: bytes do not fit the plan.
        """
        message, lists = self._message, []
        for rank, body in enumerate(every):
            with named(f"rank {rank}"):
                data = to_device(body, message.device)
                values = self._quantize.read_runs(data, self._runs, self._context, message.limit)
                lists.append(EncodedEntries(self._runs, values))
        return lists
