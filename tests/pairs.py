"""Which parts go together, and rows in which any two that do are met.

python -m tests.pairs prints rows for `tests.table.MIXED`, for all pairs that no row has.
"""

import itertools
import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from ddp_compress.body import Listed
from tests.table import COLUMNS, PARTS, ROWS, Row, mixed

Pair = tuple[str, str]
Words = tuple[str, ...]


def kinds(row: Row) -> tuple[str, ...]:
    """What a row has of all that rows differ in."""
    recipe = row.recipe
    exchange = getattr(recipe.exchange, "few", recipe.exchange)
    parts = {
        "memory": recipe.memory,
        "select": recipe.select,
        "values": recipe.quantize if recipe.body == Listed() else recipe.body,
        "codec": recipe.codec,
        "exchange": getattr(exchange, "agree", exchange),
    }
    return (
        *(f"{slot} {type(part).__name__}" for slot, part in parts.items()),
        f"scope {row.scope}",
        "density of a schedule" if callable(recipe.select.density) else "constant density",
        "some uncompressed" if row.min_numel else "all compressed",
    )


def pairs(*rows: Row) -> set[Pair]:
    each = (itertools.combinations(found, 2) for found in set(map(kinds, rows)))
    return set(itertools.chain.from_iterable(each))


@cache
def every_mix() -> dict[Words, Row | ValueError]:
    """What comes of all combinations of parts: a row, or words on why two do not go together."""
    mixes: dict[Words, Row | ValueError] = {}
    *parts, (last, sizes) = PARTS.items()  # which no part asks for
    for words in itertools.product(*(of_column for _, of_column in parts)):
        named = dict(zip(PARTS, words, strict=False))
        if named["select"] == "all" and (named["scope"], named["density"]) != (
            "tensor",
            "constant",
        ):
            continue  # it has neither
        try:
            row = mixed(named | {last: "0"})
            mixes |= {(*words, word): replace(row, min_numel=sizes[word]) for word in sizes}
        except ValueError as error:
            mixes |= {(*words, word): error for word in sizes}
    return mixes


def missing(rows: Iterable[Row], mixes: Iterable[Row]) -> set[Pair]:
    """Pairs that the mixes have, and no row has."""
    return pairs(*mixes) - pairs(*rows)


def covering(wanted: set[Pair], mixes: dict[Words, set[Pair]]) -> list[Words]:
    """Few mixes that together have all wanted pairs, chosen greedily."""
    chosen: list[Words] = []
    while wanted:
        some = random.sample([*mixes], min(4000, len(mixes)))
        best = max(some, key=lambda words: len(mixes[words] & wanted))
        if mixes[best] & wanted:
            chosen.append(best)
            wanted = wanted - mixes[best]
    return chosen


def main() -> None:
    mixes = {words: row for words, row in every_mix().items() if isinstance(row, Row)}
    wanted = missing(ROWS.values(), mixes.values())
    of_mixes = {words: pairs(row) & wanted for words, row in mixes.items()}
    for words in min((covering(wanted, of_mixes) for _ in range(20)), key=len):
        print(
            "  ".join(word.ljust(len(column)) for word, column in zip(words, COLUMNS, strict=True))
        )


if __name__ == "__main__":
    main()
