"""The laws that need several ranks, for every row of the table, on two levels of 2 x 2 ranks.

PYTHONPATH=. python tests/distributed/every_law.py nodes
PYTHONPATH=. python tests/distributed/every_law.py shards
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.distributed import test_sharded_models
from tests.distributed.harness import RankError, Ranks
from tests.distributed.nodes import on_nodes
from tests.distributed.shards import on_shards
from tests.distributed.soak import poisoned_steps, with_delays
from tests.distributed.test_checkpoints import one_life_and_three
from tests.distributed.test_laws_on_ranks import grads_of_every_step, learns
from tests.distributed.test_local_updates import poisoned_rounds
from tests.table import ROWS, Row

Law = Callable[[Ranks, Row], list[Any]]  # what all ranks, and all runs, must bring alike


def of_nodes(function: Callable[..., Any], *more: Any) -> Law:
    return lambda ranks, row: ranks.run(4, on_nodes, 2, function, row, *more)


def of_one_rank_nodes(ranks: Ranks, row: Row) -> list[Any]:
    flat = ranks.run(2, grads_of_every_step, row)
    return flat + ranks.run(2, on_nodes, 1, grads_of_every_step, row)


def both(one: Law, other: Law) -> Law:
    return lambda ranks, row: one(ranks, row) + other(ranks, row)


STEPS = of_nodes(grads_of_every_step)
LAWS: dict[str, dict[str, Law]] = {
    "nodes": {
        "2": both(STEPS, STEPS),
        "4": of_nodes(one_life_and_three, {}),
        "4, static_graph": of_nodes(one_life_and_three, {"static_graph": True}),
        "4, find_unused": of_nodes(one_life_and_three, {"find_unused_parameters": True}),
        "7": both(of_nodes(with_delays, 8, 0.005), of_nodes(with_delays, 8, 0.0)),
        "8": of_nodes(poisoned_steps, 6),
        "8, rounds": of_nodes(poisoned_rounds, 4),
        "9, bf16": lambda *given: [end for *_, end in of_nodes(learns, torch.bfloat16)(*given)],
        "9, fp64": lambda *given: [end for *_, end in of_nodes(learns, torch.float64)(*given)],
        "11": of_one_rank_nodes,
    },
    "shards": {
        "2": lambda ranks, row: ranks.run(4, test_sharded_models.twice, grads_of_every_step, row),
        "4": lambda ranks, row: ranks.run(4, on_shards, 2, one_life_and_three, row, {}),
        "7": lambda ranks, row: ranks.run(4, test_sharded_models.slow_and_fast, row),
        "8": lambda ranks, row: ranks.run(4, test_sharded_models.poisoned_shards, row),
        "11": lambda ranks, row: ranks.run(2, test_sharded_models.sharded_and_in_ddp, row),
    },
}


def wrong_with(law: Law, ranks: Ranks, row: Row) -> str:
    """Nothing where it holds."""
    try:
        brought = law(ranks, row)
    except (RankError, TimeoutError) as error:
        return str(error).splitlines()[-1]
    return "" if all(each == brought[0] for each in brought) else "ranks or runs differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("levels", choices=[*LAWS])
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS], metavar="ROW")
    args = parser.parse_args()
    laws, failures = LAWS[args.levels], 0
    with Ranks(4) as ranks:
        for name in args.rows:
            start = time.perf_counter()
            found = {law: wrong_with(run, ranks, ROWS[name]) for law, run in laws.items()}
            wrong = [f"law {law}: {words}" for law, words in found.items() if words]
            failures += len(wrong)
            seconds = time.perf_counter() - start
            print(f"{name:32} {seconds:4.0f} s  {'; '.join(wrong) or 'all hold'}", flush=True)
    print(f"{len(args.rows)} rows, laws {', '.join(laws)}: {failures} failures")
    raise SystemExit(failures > 0)


if __name__ == "__main__":
    main()
