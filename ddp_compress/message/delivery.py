"""What an exchange brings back for a message."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ddp_compress.message.entries import Entries


@dataclass(frozen=True)
class Delivery:
    """What an exchange brought, to be added in this order on every rank.

    Args:
        sent: what others decoded of this rank, so that memory keeps exactly the rest.
        received: entries to add, in rank order.
        scale: factor of every received value, 1/W for a mean.
        uncompressed: whether these are the entries that travel at every step.
        writes: entries to write into kept tensors, by name.
    """

    sent: Sequence[Entries]
    received: Sequence[Entries]
    scale: float
    uncompressed: bool = False
    writes: Mapping[str, Entries] = field(default_factory=dict)


Deliveries = list[Delivery] | None
"""What an exchange comes to: deliveries in the order in which they are added; None for an abort."""
