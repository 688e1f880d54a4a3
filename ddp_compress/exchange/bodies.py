"""The bodies of a message, as the parts of a recipe write and read them."""

import torch
from torch import Tensor

from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message
from ddp_compress.message.plan import Plan
from ddp_compress.message.random_key import RandomKey
from ddp_compress.message.universe import CountedUniverse, Universe
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device, to_host
from ddp_compress.recipe import Recipe
from ddp_compress.stats import Stats

COUNT_BYTES = 4


class Bodies:
    """Writes what this rank sends of a message, and reads what any rank has sent.

    Args:
        message: on its way.
        recipe: its body, codec and quantizer.
        stats: where to count.
        rank: this one. What is decoded draws nothing that depends on it.
        reply: whether these are owners' answers.
    """

    def __init__(
        self, message: Message, recipe: Recipe, stats: Stats, rank: int, reply: bool = False
    ) -> None:
        self._message = message
        self._recipe = recipe
        self._stats = stats
        self._rank = rank
        self._reply = reply

    def encode(self, entries: Entries, plan: Plan) -> Tensor:
        """Bytes of at most `plan.ks` entries: uint8 [B]."""
        return self._encode(entries, plan, plan)

    def decode(self, data: Tensor, plan: Plan) -> Entries:
        """The entries again, on the message's device and in memory's dtype.

        Raises:
            ValueError: the bytes do not fit the plan.
        """
        entries, counts = self._decode(data, plan, plan)
        _check_most(counts, plan)
        return entries

    def encode_counted(self, entries: Entries, plan: Plan) -> Tensor:
        """Bytes of any number of entries in the plan's groups; their count comes first."""
        self._stats.position_bits += 8 * COUNT_BYTES
        count = host.tensor([len(entries)], dtype=torch.int32).view(torch.uint8)
        body = self._encode(entries, plan, CountedUniverse(plan.bounds, len(entries)))
        return torch.cat([count, to_host(body)])

    def decode_counted(self, data: Tensor, plan: Plan) -> Entries:
        """Undo `encode_counted`; see `decode`."""
        count = read_count(data)
        if not 0 <= count <= plan.numel:
            raise ValueError(f"{count} entries, expected at most {plan.numel}")
        universe = CountedUniverse(plan.bounds, count)
        return self._decode(data[COUNT_BYTES:], plan, universe)[0]

    def _encode(self, entries: Entries, plan: Plan, universe: Universe) -> Tensor:
        recipe = self._recipe
        lists = recipe.body.encode(entries, plan, universe, recipe, self._key(plan))
        device = self._message.device  # some parts work on the host, whatever it is
        positions, values = [], []
        for each in lists:
            bits = 8 * len(each.positions), 8 * len(each.values)
            self._stats.entry_list(each.name, each.count, *bits)
            positions.append(to_device(each.positions, device))
            values.append(to_device(each.values, device))
        return torch.cat(positions + values)

    def _decode(self, data: Tensor, plan: Plan, universe: Universe) -> tuple[Entries, Tensor]:
        message, recipe = self._message, self._recipe
        data = to_device(data, message.device)
        entries, counts = recipe.body.decode(data, plan, universe, recipe, self._key(plan))
        values = to_device(entries.values, message.device).to(message.memory_dtype)
        # A quantizer's noise may be beyond the largest value that was sent.
        return Entries(entries.indices, message.clamped(values)), counts

    def _key(self, plan: Plan) -> RandomKey:
        return RandomKey(plan.group_names, self._message.step, self._rank, self._reply)


def read_count(body: Tensor) -> int:
    """The int32 that a body starts with.

    Raises:
        ValueError: the body is too short.
    """
    if len(body) < COUNT_BYTES:
        raise ValueError(f"got {len(body)} bytes, expected a count of {COUNT_BYTES} first")
    return int(body[:COUNT_BYTES].clone().view(torch.int32))


def check_counts(indices: Tensor, plan: Plan) -> None:
    """Raise where positions are more than a group may send, or outside every group.

    Raises:
        ValueError: see above.
    """
    counts = plan.counts(indices)
    _check_most(counts, plan)
    if int(counts.sum()) != len(indices):
        raise ValueError("positions: outside every group")


def _check_most(counts: Tensor, plan: Plan) -> None:
    if (counts > plan.ks).any():
        raise ValueError("positions: more than a group may send")
