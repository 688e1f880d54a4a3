"""Count the steps, entries, bits and bytes that a rank sent and received."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

PACKAGES = ("pattern", "kernel", "individual")


@dataclass
class ListCounts:
    """Counts of one kind of lists of entries.

    Attributes:
        entries: that were sent in them.
        position_bits, value_bits: as of `Stats`.
    """

    entries: int = 0
    position_bits: int = 0
    value_bits: int = 0


@dataclass
class Traffic:
    """Counts of what this rank exchanges with some others.

    Attributes:
        payload_bits, sent_bytes, received_bytes, collectives: as of `Stats`.
    """

    payload_bits: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    collectives: int = 0

    def collective(self, sent: int, received: int) -> None:
        """Count one collective call and its bytes."""
        self.collectives += 1
        self.moved(sent, received)

    def moved(self, sent: int, received: int) -> None:
        """Count bytes that went without a call, such as through shared memory."""
        self.sent_bytes += sent
        self.received_bytes += received


@dataclass
class Stats(Traffic):
    """Counts since the state was made, for this rank.

    With nodes of several ranks (`within`), all but ``within`` counts what goes between nodes: the
    rank's slice of the gradients, exchanged with one rank of every other node. With a sharded model
    so does all but ``within`` of its shard, exchanged with one rank of every other replica.

    Attributes:
        steps: committed steps. Aborted ones are counted apart, their bytes with the rest.
        aborted: steps given up because a rank had a non-finite gradient.
        discarded: of the steps, those that `CompressionState.discard` took back.
        elements: gradient elements handled, N summed over steps.
        nonzeros: entries this rank sent.
        payload_bits: bits this rank encoded, header included: what papers call uplink.
        position_bits, value_bits: the parts of it that say where entries are and what they are
            worth, after entropy coding; the rest is headers and agreement.
        packages: the same by list, of entries that travel with their positions: "pattern" and
            "kernel" are whole kernels of convolutions (`recipes.smartidx`), all others are
            "individual".
        sent_bytes: bytes that left this rank in collectives, padding included. An all-gather
            carries each rank's message to W - 1 others, so it counts W - 1 times.
        received_bytes: bytes that this rank took from collectives.
        dense_bytes: bytes that a ring all-reduce of fp32 would have sent, 2 (W - 1) / W * 4 N.
        collectives: collective calls. The one exchange of settings before the first step is not
            counted.
        within: what was exchanged inside the node, dense gradients and headers; inside the replica
            of a sharded model only whether steps count, for FSDP has averaged gradients before.
    """

    steps: int = 0
    aborted: int = 0
    discarded: int = 0
    elements: int = 0
    nonzeros: int = 0
    position_bits: int = 0
    value_bits: int = 0
    dense_bytes: float = 0.0
    within: Traffic = field(default_factory=Traffic)
    packages: dict[str, ListCounts] = field(
        default_factory=lambda: {name: ListCounts() for name in PACKAGES}
    )

    @property
    def ratio(self) -> float:
        """How many times smaller than fp32 the payload is: 32 N / payload_bits."""
        return 32 * self.elements / self.payload_bits if self.payload_bits else float("nan")

    @property
    def bits_per_nonzero(self) -> float:
        """Payload bits for each entry sent, positions, values and headers together."""
        return self.payload_bits / self.nonzeros if self.nonzeros else float("nan")

    def step(self, numel: int, world_size: int, committed: bool) -> None:
        """Count one step of so many elements, committed or aborted."""
        if not committed:
            self.aborted += 1
            return
        self.steps += 1
        self.elements += numel
        self.dense_bytes += 2 * (world_size - 1) / world_size * 4 * numel

    def entry_list(self, name: str, entries: int, position_bits: int, value_bits: int) -> None:
        """Count one list of entries, by its name and in all."""
        named = self.packages[name]
        for counts in (self, named):
            counts.position_bits += position_bits
            counts.value_bits += value_bits
        self.nonzeros += entries
        named.entries += entries

    def state_dict(self) -> dict[str, float]:
        """The counts as plain numbers, those of lists as ``"pattern.entries"``."""
        counts = asdict(self)
        groups = counts.pop("packages") | {"within": counts.pop("within")}
        inner = {f"{name}.{what}": n for name in groups for what, n in groups[name].items()}
        return counts | inner

    @classmethod
    def of(cls, saved: Mapping[str, float]) -> Stats:
        """Undo `state_dict`; what is missing is 0.

        Example:
            >>> Stats.of({"steps": 3, "kernel.entries": 9}).packages["kernel"].entries
            9
        """
        stats = cls()
        groups = {**stats.packages, "within": stats.within, "": stats}
        for name, count in saved.items():
            group, _, inner = name.rpartition(".")
            setattr(groups[group], inner, count)
        return stats
