"""Real processes on Gloo, started once and given many functions to run.

Every run has a process group of its own, so that a test which breaks one does not spoil the next,
and a hard limit in time, so that nothing hangs.
"""

import faulthandler
import itertools
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from typing_extensions import Self

COLLECTIVE_TIMEOUT = 20.0  # seconds; shorter than LIMIT, so that a hang says where
LIMIT = 60.0


class RankError(AssertionError):
    """A function failed on a rank; says where."""


@dataclass(frozen=True)
class Outcome:
    """What a function came to on one rank: a value, an error, or the end of its process."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""


class Ranks:
    """Worker processes, one a rank. Close them, or use them as a context."""

    def __init__(self, count: int = 4) -> None:
        self._workers: list[tuple[BaseProcess, Connection]] = []
        self._start(count)
        self._folder = tempfile.TemporaryDirectory()
        self._numbers = itertools.count()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, world_size: int, function: Callable[..., Any], *args: Any, limit: float = LIMIT
    ) -> list[Any]:
        """Call ``function(*args)`` on every rank; what it returned, in rank order.

        Raises:
            RankError: it failed on a rank. Carries the traceback of every rank that failed.
        """
        outcomes = self.outcomes(world_size, function, *args, limit=limit)
        failed = [
            f"--- rank {rank} of {world_size}:\n{outcome.trace or repr(outcome.error)}"
            for rank, outcome in enumerate(outcomes)
            if outcome.error
        ]
        if failed:
            raise RankError("\n".join(failed))
        return [outcome.value for outcome in outcomes]

    def outcomes(
        self,
        world_size: int,
        function: Callable[..., Any],
        *args: Any,
        limit: float = LIMIT,
        collective_timeout: float = COLLECTIVE_TIMEOUT,
    ) -> list[Outcome]:
        """The same, with errors as values.

        Raises:
            TimeoutError: a rank took longer than ``limit`` seconds. All workers are ended.
        """
        self._start(world_size)
        meeting = Path(self._folder.name, str(next(self._numbers)))
        for rank, (_, pipe) in enumerate(self._workers[:world_size]):
            job = (function, args, rank, world_size, str(meeting), limit, collective_timeout)
            pipe.send_bytes(pickle.dumps(job))
        deadline = time.monotonic() + limit
        outcomes = []
        for rank, (process, pipe) in enumerate(self._workers[:world_size]):
            ready = wait([pipe, process.sentinel], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._end()
                raise TimeoutError(f"rank {rank} of {world_size} took more than {limit} seconds")
            outcomes.append(_receive(process, pipe))
        if any(outcome.error for outcome in outcomes):
            self._end()
        return outcomes

    def _start(self, count: int) -> None:
        """Have at least so many workers, ready to work: imports are not on anybody's clock."""
        new = [_start() for _ in range(count - len(self._workers))]
        for _, pipe in new:
            pipe.recv_bytes()
        self._workers += new

    def close(self) -> None:
        """End the workers, and clean up."""
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        for process, pipe in self._workers:
            process.kill()
            process.join()
            pipe.close()
        self._workers = []


def _start() -> tuple[BaseProcess, Connection]:
    """A child of a server that has imported torch once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "ddp_compress"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    kept = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(kept, "1"))  # read when the server loads its libraries
    try:
        process.start()
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    theirs.close()
    return process, ours


def _receive(process: BaseProcess, pipe: Connection) -> Outcome:
    try:
        outcome: Outcome = pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionResetError):
        process.join()
        return Outcome(error=ChildProcessError(f"process ended with code {process.exitcode}"))
    return outcome


def _work(pipe: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # A Gloo group that ends while its threads let go of a collective may wait for them with the
    # GIL that they wait for (torch 2.13). So a group outlives its run by one run.
    previous: dist.ProcessGroup | None = None
    pipe.send_bytes(b"ready")
    while True:
        try:
            job = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        outcome, group = _attempt(*job)
        pipe.send_bytes(outcome)
        if group is None:
            os._exit(1)  # who knows what is still under way
        previous = group  # noqa: F841


def _attempt(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world_size: int,
    meeting: str,
    limit: float,
    timeout: float,
) -> tuple[bytes, dist.ProcessGroup | None]:
    faulthandler.dump_traceback_later(limit, file=sys.__stderr__)
    torch.manual_seed(0)  # whatever was drawn before, ranks begin alike
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        outcome = pickle.dumps(Outcome(value=function(*args)))
        group = dist.group.WORLD
        dist.destroy_process_group()
        return outcome, group
    except BaseException as error:
        trace = traceback.format_exc()
        try:
            return pickle.dumps(Outcome(error=error, trace=trace)), None
        except Exception:
            return pickle.dumps(Outcome(error=RuntimeError(repr(error)), trace=trace)), None
    finally:
        faulthandler.cancel_dump_traceback_later()
