"""The stages of a step: how long each takes, and their names in torch.profiler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from time import perf_counter
from typing import Any, Literal, TypeVar, cast

import torch

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

    def add(self, name: str, seconds: float) -> None:
        """Count some more, on whichever thread, if somebody has asked."""
        with self._lock:
            if self.asked:
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @contextmanager
    def hook(self) -> Iterator[None]:
        """What keeps the training thread: it begins with "encode"; one in another counts once."""
        if not self._watches:
            yield
        elif getattr(_here, "watch", None) is not None:
            with self._within("encode"):
                yield
        else:
            start = perf_counter()
            try:
                with _range(HOOK), self._within("encode"):
                    yield
            finally:
                self.add(HOOK, perf_counter() - start)

    def follow(self, work: Generator[Y, None, R]) -> Generator[Y, None, R]:
        """The same work, watched on whichever thread it is driven."""
        return self._followed(work) if self._watches else work

    @property
    def _watches(self) -> bool:
        return self.asked or _is_profiling()

    def _followed(self, work: Generator[Y, None, R]) -> Generator[Y, None, R]:
        stage: Stage = "encode"
        while True:
            with self._within(stage):
                try:
                    launched = next(work)
                except StopIteration as end:
                    outcome: R = end.value
                    return outcome
            yield launched
            stage = "wait"

    @contextmanager
    def _within(self, stage: Stage) -> Iterator[None]:
        """Be in a stage, and in those that are entered from it; then again where one was."""
        outer: _Watch | None = getattr(_here, "watch", None)
        watch = outer or _Watch(self)
        before, _here.watch = watch.stage, watch
        watch.enter(stage)
        try:
            yield
        finally:
            watch.enter(before)
            _here.watch = outer


class _Watch:
    """One thread's way from stage to stage."""

    def __init__(self, stages: Stages) -> None:
        self.stage: Stage | None = None
        self._stages = stages
        self._since = 0.0
        self._range: AbstractContextManager[object] = nullcontext()

    def enter(self, stage: Stage | None) -> None:
        """Leave one stage for another; None for none."""
        if stage == self.stage:
            return
        now = perf_counter()
        self._range.__exit__(None, None, None)
        if self.stage is not None:
            self._stages.add(self.stage, now - self._since)
        self.stage, self._since = stage, now
        self._range = nullcontext() if stage is None else _range(stage)
        self._range.__enter__()


def _is_profiling() -> bool:
    """Whether a profiler runs, on whichever thread."""
    return torch.autograd.profiler._is_profiler_enabled


def _range(name: str) -> AbstractContextManager[object]:
    """A range of the profiler, where one runs: it costs microseconds where none does."""
    if not _is_profiling():
        return nullcontext()
    return torch.profiler.record_function(f"ddp_compress: {name}")


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
        with self.stages.hook():
            return method(self, *args, **options)

    return cast(F, counted)
