"""The thread on which exchanges of many phases run."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ddp_compress.message.delivery import Deliveries
from ddp_compress.ops.devices import set_device
from ddp_compress.transport.phases import Phases, drive


class Worker:
    """Runs exchanges one after another, in the order in which they were given.

    A later phase must not be launched from the callback of an earlier one: Gloo runs callbacks in
    any order, so ranks would launch in different orders and wait for each other for ever. On one
    thread the order is that of the messages, and backward goes on meanwhile. The thread ends with
    the worker, or with the interpreter.

    Args:
        device: of the gradients.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="ddp_compress", initializer=set_device, initargs=(device,)
        )

    def submit(
        self,
        exchange: Phases[Deliveries],
        instead: Callable[[BaseException], Phases[Deliveries]],
        after: Future[Deliveries] | None,
    ) -> Future[Deliveries]:
        """Run an exchange.

        Args:
            exchange: of a message.
            instead: makes what is run instead of it where the one before has failed.
            after: the one before it in its step.
        """
        return self._thread.submit(_drive, exchange, instead, after)

    def close(self) -> None:
        """End the thread after all that was given to it: other ranks take part in the same."""
        self._thread.shutdown()


def _drive(
    exchange: Phases[Deliveries],
    instead: Callable[[BaseException], Phases[Deliveries]],
    after: Future[Deliveries] | None,
) -> Deliveries:
    error = after and after.exception()
    return drive(instead(error) if error else exchange)
