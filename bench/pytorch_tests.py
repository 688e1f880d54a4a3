"""PyTorch's own tests of DDP, as they are and with top-k of every entry attached to their models.

    pip install expecttest parameterized                 # which PyTorch's tests import
    python bench/pytorch_tests.py
    python bench/pytorch_tests.py --tests uneven static  # those whose names hold one of these words

``topk(density=1.0)`` averages as an all-reduce does, so every test that passes dense must pass with
it. It is attached right before a model's first forward pass with gradients, or when the model
joins, unless the test has registered a communication hook by then. Every rank is a process of its
own, on Gloo. What tests put on a GPU is on the CPU (see `no_gpu.py`), for most of them ask for one;
those that train no model without a hook, or cannot do without the GPU, are left out.

What cannot hold stands in `REASONS`; the exit code is 1 if anything else fails, or if one of these
passes.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import unittest
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from rich.markup import escape
from rich.table import Table
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import ddp_compress as dc
from no_gpu import no_gpu
from output import show

OWN_HOOK = "DDP registers a hook of its own for optimizers in backward, in its first forward pass"
REASONS = {
    "test_ddp_apply_optim_in_backward": OWN_HOOK,
    "test_ddp_apply_optim_in_backward_grad_as_bucket_view_false": OWN_HOOK,
    "test_ddp_apply_optim_in_backward_ignored_params": OWN_HOOK,
    "test_ddp_comm_hook_logging": "asks that DDP's log name no hook",
    "test_ddp_grad_div_uneven_inputs": "divide_by_initial_world_size=False, which DDP ignores "
    "where there is a hook: the mean is over all ranks always",
    "test_ddp_profiling_torch_profiler": "counts all-reduces; a message is an all-to-all",
    "test_ddp_sink_noclone": "forbids aten.clone in all of backward; the exchange copies messages",
    "test_skip_all_reduce_unused_parameters": "skip_all_reduce_unused_params is refused by name",
}

PASSES, DIFFERS = "pass in both", "differ, for a known reason"
FAILS_DENSE, UNEXPLAINED = "fail dense", "differ without a known reason"
OUTDATED = "pass, though a reason stands against it"

Act = Callable[[DistributedDataParallel], object]


@contextmanager
def at_first_pass(act: Act) -> Iterator[None]:
    """Call ``act`` once with every DDP model that is about to train without a hook of its own."""
    hooked: WeakSet[DistributedDataParallel] = WeakSet()

    def registering(register: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(register)
        def wrapper(model: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
            hooked.add(model)
            return register(model, *args, **kwargs)

        return wrapper

    def prepare(model: DistributedDataParallel) -> None:
        if torch.is_grad_enabled() and model not in hooked:
            hooked.add(model)
            act(model)

    def training(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def wrapper(model: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
            torch.compiler.disable(prepare)(model)
            return method(model, *args, **kwargs)

        return wrapper

    wrappers = {
        "register_comm_hook": registering,
        "_register_builtin_comm_hook": registering,
        "_register_fused_optim": registering,
        "forward": training,
        "join": training,
    }
    originals = {name: vars(DistributedDataParallel)[name] for name in wrappers}
    try:
        for name, wrap in wrappers.items():
            setattr(DistributedDataParallel, name, wrap(originals[name]))
        yield
    finally:
        for name, original in originals.items():
            setattr(DistributedDataParallel, name, original)


def compress(model: DistributedDataParallel) -> None:
    dc.attach(model, dc.recipes.topk(density=1.0))


@dataclass(frozen=True)
class Outcome:
    """Of one test.

    Args:
        verdict: "passes", "fails" or "skipped".
        why: the last line of every rank's error.
        trains: whether a DDP model without a hook of its own came to a forward pass.
    """

    verdict: str
    why: str
    trains: bool


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Let this process and its children write into a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, each in zip((1, 2), kept, strict=True):
            os.dup2(each, number)
            os.close(each)


class Suite:
    """PyTorch's tests; imported late, because they read the environment when they are.

    Args:
        ranks: processes of a test.
        limit: seconds that a test may take.
        folder: for what tests print.
    """

    def __init__(self, ranks: int, limit: int, folder: Path) -> None:
        os.environ.update(
            BACKEND="gloo", WORLD_SIZE=str(ranks), DISTRIBUTED_TESTS_DEFAULT_TIMEOUT=str(limit)
        )
        from torch.testing._internal import common_distributed
        from torch.testing._internal.distributed import distributed_test as theirs

        common_distributed.TIMEOUT_OVERRIDE.clear()  # one test would have 400 seconds

        base: Any = theirs.TestDistBackend

        class TestDistributed(base, theirs.DistributedTest._DistTestBase):  # type: ignore[misc]
            def setUp(self) -> None:
                super().setUp()
                self._start_processes(torch.multiprocessing.get_context("fork").Process)

        TestDistributed.setUpClass()
        self.names = [name for name in dir(TestDistributed) if name.startswith("test_")]
        self._case = TestDistributed
        self._folder = folder

    def run(self, name: str, hook: bool) -> Outcome:
        """One test, dense or with the hook."""
        marks = Path(tempfile.mkdtemp(dir=self._folder))

        def act(model: DistributedDataParallel) -> None:
            tempfile.mkstemp(dir=marks)
            if hook:
                compress(model)

        result = unittest.TestResult()
        log = self._folder / f"{name}-{'hook' if hook else 'dense'}.log"
        with output_to(log), no_gpu(count=8), at_first_pass(act):
            self._case(name).run(result)
        failed = [text for _, text in result.errors + result.failures]
        verdict = "fails" if failed else "skipped" if result.skipped else "passes"
        return Outcome(verdict, summary("\n".join(failed)), any(marks.iterdir()))


def summary(text: str) -> str:
    """Each rank's last error in a failed test's report, one line an error."""
    reports = text.split("and exception:\n")
    errors = [re.findall(r"^[\w.]+(?:Error|Exception): .*", report, re.M) for report in reports]
    last = [found[-1] for found in errors[1:] or errors if found]
    return "\n".join(dict.fromkeys(last)) or text.strip()[-300:]


@dataclass(frozen=True)
class Pair:
    """A test, dense and with the hook."""

    name: str
    dense: Outcome
    hook: Outcome

    @property
    def judgement(self) -> str:
        """What it is counted as."""
        if self.dense.verdict != "passes":
            return FAILS_DENSE
        if self.hook.verdict == "passes":
            return OUTDATED if self.name in REASONS else PASSES
        return DIFFERS if self.name in REASONS else UNEXPLAINED


def pairs(suite: Suite, words: Sequence[str]) -> Iterator[Pair]:
    """All tests that train a DDP model without a hook of its own."""
    names = [name for name in suite.names if not words or any(word in name for word in words)]
    progress = tqdm(names, unit="test")
    for name in progress:
        progress.set_description(name)
        dense = suite.run(name, hook=False)
        if dense.trains and dense.verdict != "skipped":
            hook = suite.run(name, hook=True) if dense.verdict == "passes" else dense
            yield Pair(name, dense, hook)


def render(found: Sequence[Pair]) -> Table:
    """The pairs that do not pass in both."""
    table = Table(title=f"{len(found)} tests train a DDP model without a hook of its own")
    for column in ("test", "dense", "topk(1.0)", "why"):
        table.add_column(column, overflow="fold")
    for pair in found:
        if pair.judgement != PASSES:
            why = REASONS.get(pair.name) or pair.dense.why or pair.hook.why
            table.add_row(pair.name, pair.dense.verdict, pair.hook.verdict, escape(why))
    return table


def main() -> None:
    """Run them and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tests", nargs="+", default=[], metavar="WORD", help="of their names; default: all")
    add("--ranks", type=int, default=2)
    add("--limit", type=int, default=60, help="seconds a test")
    add("--logs", type=Path, help="keep there what tests print")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread: a lock that it holds would stay held in the processes
    with tempfile.TemporaryDirectory(prefix="pytorch-tests-") as name:
        folder = options.logs or Path(name)
        folder.mkdir(exist_ok=True)
        found = list(pairs(Suite(options.ranks, options.limit, folder), options.tests))
    show(render(found))
    counts = Counter(pair.judgement for pair in found)
    print("\n".join(f"{count:4}  {judgement}" for judgement, count in counts.most_common()))
    sys.exit(1 if counts[UNEXPLAINED] + counts[OUTDATED] else 0)


if __name__ == "__main__":
    main()
