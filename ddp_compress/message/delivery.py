"""What an exchange brings back for a message."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ddp_compress.message.entries import AnyEntries, Entries


def _nothing() -> None:
    """All is known to be good."""


@dataclass(frozen=True)
class Delivery:
    """What an exchange brought, to be added in this order on every rank.

    Args:
        sent: what others decoded of this rank, so that memory keeps exactly the rest.
        received: entries to add, in rank order.
        scale: factor of every received value, 1/W for a mean.
        uncompressed: whether these are the entries that travel at every step.
        writes: entries to write into kept tensors, by name.
        confirm: raises a ValueError where what was received is bad after all, as a GPU tells late.
            It is called once all is written, and what has raised takes that back.
    """

    sent: Sequence[AnyEntries]
    received: Sequence[AnyEntries]
    scale: float
    uncompressed: bool = False
    writes: Mapping[str, Entries] = field(default_factory=dict)
    confirm: Callable[[], None] = _nothing


Deliveries = list[Delivery] | None
"""What an exchange comes to: deliveries in the order in which they are added; None for an abort."""
