"""The stages of a step: how long each takes, and their names in torch.profiler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from time import perf_counter
from typing import Any, Literal, TypeVar, cast

import torch
from torch.profiler import record_function

Stage = Literal["encode", "wait", "decode", "worker"]

STAGES = ("encode", "wait", "decode")
HOOK = "hook"

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
Y = TypeVar("Y")

_here = threading.local()


def enter(stage: Stage) -> None:
    """From here on this thread is in another stage of its step, where that is watched at all.

    Args:
        stage: "encode", all that makes what is sent; "wait", for other ranks; "decode", all that
            is made of what came; or "worker", which this thread waits for.
    """
    watch: _Watch | None = getattr(_here, "watch", None)
    if watch is not None:
        watch.enter(stage)


class Stages:
    """How long steps spend in each stage, on all threads, and what they spend in the hook.

    Nothing is watched, and no clock read, where nobody has asked for it and no profiler runs. A
    copy begins anew.

    Attributes:
        asked: whether somebody has.

    Example:
        >>> stages = Stages()
        >>> stages.asked = True
        >>> with stages.hook():
        ...     enter("wait")
        >>> sorted(stages.take())
        ['encode', 'hook', 'wait']
    """

    def __init__(self) -> None:
        self.asked = False
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Stages], tuple[()]]:
        """None of what cannot leave the process."""
        return Stages, ()

    def take(self) -> dict[str, float]:
        """Seconds by stage since the last call."""
        with self._lock:
            taken, self._seconds = self._seconds, {}
        return taken

    def add(self, seconds: dict[str, float]) -> None:
        """Count some more, of whichever thread, if somebody has asked."""
        if not self.asked:
            return
        with self._lock:
            for name, some in seconds.items():
                self._seconds[name] = self._seconds.get(name, 0.0) + some

    @contextmanager
    def hook(self) -> Iterator[None]:
        """What keeps the training thread: it begins with "encode"; one in another counts once."""
        if getattr(_here, "watch", None) is not None:
            with _Within(self, "encode"):
                yield
        else:
            start = perf_counter()
            try:
                with _range(HOOK) or nullcontext(), _Within(self, "encode"):
                    yield
            finally:
                self.add({HOOK: perf_counter() - start})

    def follow(self, work: Generator[Y, None, R]) -> Generator[Y, None, R]:
        """The same work, watched on whichever thread it is driven."""
        return self._followed(work) if self.watches else work

    @property
    def watches(self) -> bool:
        """Whether anything is to be watched now."""
        return self.asked or _is_profiling()

    def _followed(self, work: Generator[Y, None, R]) -> Generator[Y, None, R]:
        stage: Stage = "encode"
        while True:
            with _Within(self, stage):
                try:
                    launched = next(work)
                except StopIteration as end:
                    outcome: R = end.value
                    return outcome
            yield launched
            stage = "wait"


class _Watch:
    """One thread's way from stage to stage, and the seconds in each."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.seconds: dict[str, float] = {}
        self._since = 0.0
        self._range: record_function | None = None

    def enter(self, stage: Stage | None) -> None:
        """Leave one stage for another; None for none."""
        if stage == self.stage:
            return
        now = perf_counter()
        if self._range is not None:
            self._range.__exit__(None, None, None)
        if self.stage is not None:
            self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self._since
        self.stage, self._since = stage, now
        self._range = None if stage is None else _range(stage)
        if self._range is not None:
            self._range.__enter__()


class _Within:
    """Be in a stage on this thread, and in those that are entered from it; then where one was."""

    def __init__(self, stages: Stages, stage: Stage) -> None:
        self._stages = stages
        self._stage = stage

    def __enter__(self) -> None:
        self._outer: _Watch | None = getattr(_here, "watch", None)
        self._watch = _here.watch = self._outer or _Watch()
        self._before = self._watch.stage
        self._watch.enter(self._stage)

    def __exit__(self, *_: object) -> None:
        self._watch.enter(self._before)
        if self._outer is None:
            _here.watch = None
            self._stages.add(self._watch.seconds)


def _is_profiling() -> bool:
    """Whether a profiler runs, on whichever thread."""
    return torch.autograd.profiler._is_profiler_enabled


def _range(name: str) -> record_function | None:
    """A range of the profiler; None where none runs: even then it would cost microseconds."""
    return record_function(f"ddp_compress: {name}") if _is_profiling() else None


def in_hook(method: F) -> F:
    """Let all of a method count as `Stages.hook` of its object's ``stages``.

    Example:
        >>> class Round:
        ...     stages = Stages()
        ...
        ...     @in_hook
        ...     def meet(self):
        ...         return "met"
        >>> Round().meet()
        'met'
    """

    @wraps(method)
    def counted(self: Any, *args: Any, **options: Any) -> Any:
        stages: Stages = self.stages
        if not stages.watches:
            return method(self, *args, **options)
        with stages.hook():
            return method(self, *args, **options)

    return cast(F, counted)
