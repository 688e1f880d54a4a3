"""The thread on which exchanges of many phases run."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from ddp_compress.exchange.comm import Work
from ddp_compress.message import Delivery

Exchanging = Generator[Work, None, "list[Delivery] | None"]


class Worker:
    """Runs exchanges one after another, in the order in which they were given.

    A later phase must not be launched from the callback of an earlier one: Gloo runs callbacks in
    any order, so ranks would launch in different orders and wait for each other for ever. On one
    thread the order is that of the messages, and backward goes on meanwhile. The thread ends with
    the worker, or with the interpreter.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ddp_compress")

    def submit(
        self, exchange: Exchanging, after: Future[list[Delivery] | None] | None
    ) -> Future[list[Delivery] | None]:
        """Run an exchange; if the one before it in its step failed, fail alike without a word."""
        return self._thread.submit(_drive, exchange, after)

    def close(self) -> None:
        """End the thread after what it has begun."""
        self._thread.shutdown(cancel_futures=True)


def _drive(
    exchange: Exchanging, after: Future[list[Delivery] | None] | None
) -> list[Delivery] | None:
    if after is not None:
        after.result()
    while True:
        try:
            next(exchange)
        except StopIteration as end:
            outcome: list[Delivery] | None = end.value
            return outcome
