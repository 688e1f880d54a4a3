"""Selected entries as the bytes of a body: positions, then values."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message, Selection
from ddp_compress.message.plan import Plan
from ddp_compress.message.random_key import RandomKey
from ddp_compress.message.universe import CountedUniverse, Universe
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device_of, to_host
from ddp_compress.stats import Stats

if TYPE_CHECKING:
    from ddp_compress.recipe import Recipe

COUNT_BYTES = 4


def select(message: Message, recipe: Recipe) -> Selection:
    """The recipe's selection, with values that fit the gradients' dtype.

    It is finite only where the uncompressed parameters are so, too.
    """
    selection = recipe.select(message)
    uncompressed, finite = message.plan.uncompressed, selection.finite
    if len(uncompressed):
        finite = finite and bool(message.values_at(uncompressed).isfinite().all())
    chosen = selection.entries
    return Selection(
        Entries(chosen.indices, message.clamped(chosen.values)), finite, selection.writes
    )


def random_key(plan: Plan, message: Message, rank: int, reply: bool = False) -> RandomKey:
    """What is random in a body of a message: in what ``rank`` sends, or answers as an owner."""
    return RandomKey(plan.group_names, message.step, rank, reply)


def encode(entries: Entries, plan: Plan, recipe: Recipe, stats: Stats, key: RandomKey) -> Tensor:
    """Bytes of at most `plan.ks` entries: uint8 [B]."""
    return _encode(entries, plan, plan, recipe, stats, key)


def decode(body: Tensor, plan: Plan, recipe: Recipe, message: Message, key: RandomKey) -> Entries:
    """The entries again, checked against what the plan allows.

    Args:
        body: [B] uint8.
        plan: what the body may hold.
        recipe: its codec and quantizer.
        message: whose device and memory's dtype the entries get.
        key: as encoded, but perhaps for the rank.

    Raises:
        ValueError: the bytes do not fit the plan.
    """
    entries, counts = _decode(body, plan, plan, recipe, message, key)
    _check_most(counts, plan)
    return entries


def encode_counted(
    entries: Entries, plan: Plan, recipe: Recipe, stats: Stats, key: RandomKey
) -> Tensor:
    """Bytes of any number of entries in the plan's groups; their count comes first."""
    stats.position_bits += 8 * COUNT_BYTES
    count = host.tensor([len(entries)], dtype=torch.int32).view(torch.uint8)
    universe = CountedUniverse(plan.bounds, len(entries))
    return torch.cat([count, to_host(_encode(entries, plan, universe, recipe, stats, key))])


def decode_counted(
    body: Tensor, plan: Plan, recipe: Recipe, message: Message, key: RandomKey
) -> Entries:
    """Undo `encode_counted`; see `decode`."""
    count = read_count(body)
    if not 0 <= count <= plan.numel:
        raise ValueError(f"{count} entries, expected at most {plan.numel}")
    entries, _ = _decode(
        body[COUNT_BYTES:], plan, CountedUniverse(plan.bounds, count), recipe, message, key
    )
    return entries


def read_count(body: Tensor) -> int:
    """The int32 that a body starts with.

    Raises:
        ValueError: the body is too short.
    """
    if len(body) < COUNT_BYTES:
        raise ValueError(f"got {len(body)} bytes, expected a count of {COUNT_BYTES} first")
    return int(body[:COUNT_BYTES].clone().view(torch.int32))


def check_counts(indices: Tensor | None, plan: Plan) -> None:
    """Raise where positions are more than a group may send, or outside every group.

    Raises:
        ValueError: see above.
    """
    counts = plan.counts(indices)
    _check_most(counts, plan)
    if indices is not None and int(counts.sum()) != len(indices):
        raise ValueError("positions: outside every group")


def _check_most(counts: Tensor, plan: Plan) -> None:
    if (counts > plan.ks).any():
        raise ValueError("positions: more than a group may send")


def _encode(
    entries: Entries, plan: Plan, universe: Universe, recipe: Recipe, stats: Stats, key: RandomKey
) -> Tensor:
    packages = recipe.quantize.pack(entries, plan, key)
    universes = recipe.quantize.universes(plan, universe)
    lists = []
    for package, where in zip(packages, universes, strict=True):
        places = recipe.codec.encode(cast(Tensor, package.places), where)
        stats.package(package.name, package.entries, 8 * len(places), 8 * len(package.values))
        lists.append(to_device_of(places, package.values))
    return torch.cat([*lists, *(package.values for package in packages)])


def _decode(
    body: Tensor, plan: Plan, universe: Universe, recipe: Recipe, message: Message, key: RandomKey
) -> tuple[Entries, Tensor]:
    """The entries, and how many are in every group."""
    body = body.to(message.device, non_blocking=True)
    lists = []
    for where in recipe.quantize.universes(plan, universe):
        places, used = recipe.codec.decode(body, where)
        lists.append(places)
        body = body[used:]
    entries, counts = recipe.quantize.unpack(lists, body, plan, key)
    values = entries.values.to(message.device, message.memory_dtype, non_blocking=True)
    # A quantizer's noise may be beyond the largest value that was sent.
    return Entries(entries.indices, message.clamped(values)), counts
