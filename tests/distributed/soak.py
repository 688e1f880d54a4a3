"""Delays and poisoned gradients, for as long as one likes.

PYTHONPATH=. python tests/distributed/soak.py --steps 2000 --trials 100
"""

import argparse
import random
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ddp_compress import CompressionState, compress_hook
from tests.distributed.harness import Ranks
from tests.distributed.nodes import on_nodes
from tests.distributed.test_local_updates import POISONS, poisoned_rounds
from tests.distributed.training import (
    MANY_BUCKETS,
    backward,
    descend,
    digest,
    grads,
    memory,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import ROWS, Row


def with_delays(row: Row, steps: int, longest: float, seed: int = 0) -> str:
    """Train with sleeps of 0 to ``longest`` seconds around every hook call, and of up to a quarter
    of that before every collective; the weights.

    Every bucket is a message of its own. Gradients are compared across ranks at the end alone, by
    the weights: a difference at any step stays in them.
    """
    sleeps = random.Random(1000 * seed + dist.get_rank())

    def hook(
        state: CompressionState, bucket: dist.GradBucket
    ) -> torch.futures.Future[torch.Tensor]:
        time.sleep(sleeps.uniform(0, longest))
        future = compress_hook(state, bucket)
        time.sleep(sleeps.uniform(0, longest))
        return future

    to_all, before_collectives = dist.all_to_all_single, random.Random(seed - 1 - dist.get_rank())

    def late(*args: Any, **options: Any) -> Any:
        time.sleep(before_collectives.uniform(0, longest / 4))
        return to_all(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_to_all_single", late)
        ddp, state = wrap(small_model(), row, hook, flush_bytes=1, bucket_cap_mb=MANY_BUCKETS)
        train(ddp, range(steps))
    if row.scope != "model":
        assert state.stats.collectives >= 3 * (steps - 1), "several messages a step were meant"
    return weights(ddp)


def poisoned_steps(row: Row, trials: int, seed: int = 0) -> str:
    """Between good steps, one rank meets inf or NaN somewhere; the weights at the end.

    Every bucket is a message of its own. Checks on this rank that the step left memory and step
    bit for bit as they were and gave back NaN alone, and that the whole run equals one that never
    saw these steps.
    """
    chance = random.Random(seed)  # all ranks draw alike
    ddp, state = wrap(small_model(), row, flush_bytes=1, bucket_cap_mb=MANY_BUCKETS)
    clean, _ = wrap(small_model(), row, flush_bytes=1, bucket_cap_mb=MANY_BUCKETS)
    good = 0
    for model in (ddp, clean):
        train(model, [good])
    for trial in range(trials):
        for _ in range(chance.randint(0, 2)):
            good += 1
            for model in (ddp, clean):
                train(model, [good])
        unlucky = chance.randrange(dist.get_world_size())
        parameter = chance.choice(list(ddp.parameters()))
        position, poison = chance.randrange(parameter.numel()), chance.choice(POISONS)
        before = memory(state)

        def spoil(grad: Tensor, position: int = position, poison: float = poison) -> Tensor:
            spoilt = grad.clone(memory_format=torch.contiguous_format)
            spoilt.view(-1)[position] = poison
            return spoilt

        handles = [parameter.register_hook(spoil)] if dist.get_rank() == unlucky else []
        backward(ddp, -1)
        for handle in handles:
            handle.remove()
        assert memory(state) == before, f"trial {trial} changed the state"
        assert all(grad.isnan().all() for grad in grads(ddp)), f"trial {trial} gave numbers"
    good += 1
    for model in (ddp, clean):
        backward(model, good)
    assert digest(grads(ddp)) == digest(grads(clean)), "a poisoned step was felt later"
    for model in (ddp, clean):
        descend(model)
    assert weights(ddp) == weights(clean)
    assert state.stats.aborted == trials
    assert state.stats.steps == good + 1
    return weights(ddp)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--ranks-per-node", type=int, help="over two levels; without: flat")
    parser.add_argument("--steps", type=int, default=2000, help="with delays, 0 for none")
    parser.add_argument("--trials", type=int, default=100, help="with poison, 0 for none")
    parser.add_argument("--longest", type=float, default=0.02, help="sleep, in seconds")
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS], metavar="ROW")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    failed = False
    with Ranks(args.ranks) as ranks:
        for name in args.rows:
            for what, count, extra in (
                (with_delays, args.steps, (args.longest, args.seed)),
                (poisoned_steps, args.trials, (args.seed,)),
                (poisoned_rounds, args.trials, (args.seed,)),
            ):
                if count:
                    start = time.perf_counter()
                    told = what, ROWS[name], count, *extra
                    if args.ranks_per_node:
                        told = on_nodes, args.ranks_per_node, *told
                    results = ranks.run(args.ranks, *told, limit=3600)
                    agree = "bit-identical" if len(set(results)) == 1 else "DIFFERENT"
                    failed = failed or len(set(results)) > 1
                    seconds = time.perf_counter() - start
                    print(
                        f"{name:18} {what.__name__:15} {count:5} on {args.ranks} ranks: "
                        f"weights {agree}, {seconds:.0f} s",
                        flush=True,
                    )
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
