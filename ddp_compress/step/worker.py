"""The thread on which exchanges of many phases run."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ddp_compress.message.delivery import Deliveries
from ddp_compress.ops.devices import set_device
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.comm import PeerError
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
        self, exchange: Phases[Deliveries], channel: Channel, after: Future[Deliveries] | None
    ) -> Future[Deliveries]:
        """Run an exchange on a channel.

        If the one before it in its step failed on every rank, fail alike without a word; if it
        failed on this rank alone, as far as it knows, tell the others instead.
        """
        return self._thread.submit(_drive, exchange, channel, after)

    def close(self) -> None:
        """End the thread after all that was given to it: other ranks take part in the same."""
        self._thread.shutdown()


def _drive(
    exchange: Phases[Deliveries], channel: Channel, after: Future[Deliveries] | None
) -> Deliveries:
    error = after and after.exception()
    if isinstance(error, PeerError):
        raise error
    if isinstance(error, Exception):
        exchange = channel.report(error)
    return drive(exchange)
