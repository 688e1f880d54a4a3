"""The laws that need several ranks, for every row of the table, over nodes of several ranks.

PYTHONPATH=. python tests/distributed/every_law.py --ranks-per-node 2
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.distributed.harness import RankError, Ranks
from tests.distributed.nodes import on_nodes
from tests.distributed.soak import poisoned_steps, with_delays
from tests.distributed.test_checkpoints import one_life_and_three
from tests.distributed.test_laws_on_ranks import grads_of_every_step, learns
from tests.distributed.test_local_updates import poisoned_rounds
from tests.table import ROWS, Row

LAWS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "2, ranks agree": (grads_of_every_step, ()),
    "2, runs agree": (grads_of_every_step, ()),
    "4, resumed": (one_life_and_three, ({},)),
    "4, static_graph": (one_life_and_three, ({"static_graph": True},)),
    "4, find_unused": (one_life_and_three, ({"find_unused_parameters": True},)),
    "7, delays": (with_delays, (8, 0.005)),
    "7, no delays": (with_delays, (8, 0.0)),
    "8, steps": (poisoned_steps, (6,)),
    "8, rounds": (poisoned_rounds, (4,)),
    "9, bf16": (learns, (torch.bfloat16,)),
    "9, fp64": (learns, (torch.float64,)),
}
PAIRS = [("2, ranks agree", "2, runs agree"), ("7, delays", "7, no delays")]


def as_without_nodes(ranks: Ranks, row: Row) -> bool:
    """One rank a node is bit for bit the flat path."""
    return ranks.run(2, on_nodes, 1, grads_of_every_step, row) == ranks.run(
        2, grads_of_every_step, row
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--ranks-per-node", type=int, default=2)
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS], metavar="ROW")
    args = parser.parse_args()
    failures = 0
    with Ranks(args.ranks) as ranks:
        for name in args.rows:
            start, wrong, brought = time.perf_counter(), [], {}
            for law, (function, more) in LAWS.items():
                told = args.ranks_per_node, function, ROWS[name], *more
                try:
                    every = ranks.run(args.ranks, on_nodes, *told)
                except (RankError, TimeoutError) as error:
                    wrong.append(f"{law}: {str(error).splitlines()[-1]}")
                    continue
                ends = [each[-1] if isinstance(each, tuple) else each for each in every]
                brought[law] = ends[0]
                wrong += [f"{law}: ranks differ"] * any(end != ends[0] for end in ends)
            wrong += [f"{a}, {b}: differ" for a, b in PAIRS if brought.get(a) != brought.get(b)]
            wrong += [] if as_without_nodes(ranks, ROWS[name]) else ["11: not as without nodes"]
            failures += len(wrong)
            seconds = time.perf_counter() - start
            print(f"{name:32} {seconds:4.0f} s  {'; '.join(wrong) or 'all hold'}", flush=True)
    print(f"{len(args.rows)} rows, {len(LAWS)} runs each: {failures} failures")
    raise SystemExit(failures > 0)


if __name__ == "__main__":
    main()
