"""What a rank would send of a message."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ddp_compress.message.entries import Entries


@dataclass(frozen=True)
class Selection:
    """What a rank would send.

    Args:
        entries: positions and accumulated values.
        finite: whether everything seen was finite; where not, the rest has no meaning.
        writes: entries to write into kept tensors, by name, if the step commits.
    """

    entries: Entries
    finite: bool
    writes: Mapping[str, Entries] = field(default_factory=dict)
