"""An exchange under way: driven by turns, or on the worker's thread."""

from concurrent.futures import Future
from typing import Protocol

from ddp_compress.message.delivery import Deliveries
from ddp_compress.stages import enter
from ddp_compress.transport.phases import Phases


class Running(Protocol):
    """An exchange under way."""

    done: bool
    outcome: Deliveries

    def advance(self) -> None:
        """Go on to the next collective, or to the end and its outcome."""

    def abandon(self) -> None:
        """Leave nothing half done that other ranks may wait for."""


class InTurns:
    """An exchange launched here and now; this thread goes from phase to phase."""

    def __init__(self, exchange: Phases[Deliveries]) -> None:
        self._exchange = exchange
        self._failure: Exception | None = None
        self.done = False
        self.outcome: Deliveries = None
        try:
            self.advance()
        except Exception as error:  # told where all messages are waited for: some is left to do
            self._failure = error

    def advance(self) -> None:
        """Go on to the next collective, or to the end and its outcome."""
        if self._failure is not None:
            raise self._failure
        if self.done:
            return
        try:
            next(self._exchange)
        except StopIteration as end:
            self.done, self.outcome = True, end.value

    def abandon(self) -> None:
        """Its collective is under way; no rank goes on to another."""


class InOrder:
    """An exchange of many phases, on the worker's thread."""

    def __init__(self, future: Future[Deliveries]) -> None:
        self.future = future
        self.done = False
        self.outcome: Deliveries = None

    def advance(self) -> None:
        """Wait for its end."""
        enter("worker")
        self.outcome = self.future.result()
        self.done = True

    def abandon(self) -> None:
        """Wait for its end, whatever that is: on another rank it may be further."""
        self.future.exception()
