"""Check that a checkpoint fits before anything is loaded; name whatever is wrong with it."""

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from ddp_compress.message.memory_format import dim_order
from ddp_compress.message.names import clean_name, clean_names
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host
from ddp_compress.recipe import Recipe
from ddp_compress.stats import Stats

ByName = Mapping[str, Mapping[str, Tensor]]  # what is kept, by slot and parameter

Part = list[Any]
"""Which part of every parameter is a rank's: ["slice", l, L] or ["shard", l, L], l from 0.

A slice is one of `Slices`, of a rank of a node; a shard is cut by FSDP.
"""

FORMAT = 5  # of CompressionState.state_dict()
READABLE = (3, 4, FORMAT)  # 4 lacks what parts need; 3 has another checksum, see `check_whole`
ENTRIES = {
    *("buckets", "checksum", "density", "dim_orders", "format", "parameters"),
    *("recipe", "saved_by", "stats", "step", "tensors"),
}
SINCE_5 = {"blocks", "part"}


def digest_of(parameters: Mapping[str, Tensor]) -> int:
    """A number that models share whose parameters have equal names and sizes.

    Example:
        >>> digest_of({"weight": torch.zeros(2)}) == digest_of({"weight": torch.zeros(3)})
        False
    """
    sizes = sorted((name, p.numel()) for name, p in parameters.items())
    return zlib.crc32(repr(sizes).encode())


def dim_orders(parameters: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """How parameters lie in memory, by name, where it is not in the order of their dimensions.

    Example:
        >>> weight = torch.empty(8, 4, 3, 3).to(memory_format=torch.channels_last)
        >>> dim_orders({"weight": weight, "bias": torch.empty(8)})
        {'weight': [0, 2, 3, 1]}
    """
    orders = {name: list(dim_order(p)) for name, p in parameters.items()}
    return {name: order for name, order in orders.items() if order != sorted(order)}


def part_of(saved: Mapping[str, Any]) -> Part | None:
    """Which part of every parameter a checkpoint holds; None for all of it.

    Example:
        >>> part_of({"part": ["slice", 0, 2]})
        ['slice', 0, 2]
    """
    part: Part | None = saved.get("part")
    return part


def flat_items(tensors: ByName) -> Iterator[tuple[str, str, Tensor]]:
    """Slot, name and tensor, of all that are kept.

    Example:
        >>> list(flat_items({"residual": {"weight": torch.zeros(2)}}))
        [('residual', 'weight', tensor([0., 0.]))]
    """
    return ((slot, name, t) for slot, by_name in tensors.items() for name, t in by_name.items())


def copied(tensors: ByName) -> dict[str, dict[str, Tensor]]:
    """A copy of all that is kept.

    Example:
        >>> copied({"residual": {"weight": torch.zeros(2)}})
        {'residual': {'weight': tensor([0., 0.])}}
    """
    return {
        slot: {name: tensor.detach().clone() for name, tensor in by_name.items()}
        for slot, by_name in tensors.items()
    }


def checksum(tensors: ByName) -> int:
    """A number that tells whether any tensor is missing or has changed, by slot and parameter.

    Example:
        >>> kept = {"residual": {"weight": torch.zeros(2), "bias": torch.zeros(1)}}
        >>> checksum(kept) == checksum({"residual": {"weight": torch.zeros(2)}})
        False
    """
    sums = sorted((slot, name, host.crc32(to_host(t))) for slot, name, t in flat_items(tensors))
    return zlib.crc32(repr(sums).encode())


def check_form(saved: Any) -> None:
    """Raise unless this is a checkpoint, of whatever model and recipe.

    Args:
        saved: what `CompressionState.state_dict` gave, perhaps damaged since.

    Raises:
        ValueError: an entry is missing, of another type, out of its range, or not finite.

    Example:
        >>> check_form(3)
        Traceback (most recent call last):
        ...
        ValueError: checkpoint is a int, expected a mapping
    """
    check_entries(saved, ENTRIES)
    if saved["format"] == FORMAT:
        check_entries(saved, SINCE_5)
    blocks = saved.get("blocks", {})
    for name, fits, expected in (
        ("format", saved["format"] in READABLE, " or ".join(map(str, READABLE))),
        ("step", is_count(saved["step"]), "an int of 0 or more"),
        ("saved_by", _is_place(saved["saved_by"]), "rank and world size, or None"),
        ("density", _is_density(saved["density"]), "a number in (0, 1], or None"),
        ("buckets", isinstance(saved["buckets"], list), "a list"),
        ("dim_orders", isinstance(saved["dim_orders"], Mapping), "a mapping"),
    ):
        expect(fits, f"checkpoint has {name}", saved[name], expected)
    part = part_of(saved)
    expect(_is_part(part), "checkpoint has part", part, '["slice" or "shard", l, L], or None')
    fits = isinstance(blocks, Mapping) and all(is_count(each) and each for each in blocks.values())
    expect(fits, "checkpoint has blocks", blocks, "counts of 1 or more, by name")
    _check_buckets(saved["buckets"])
    _check_stats(saved["stats"])
    check_tensors("tensors", saved["tensors"])
    slots = saved["tensors"]
    if saved["stats"].get("steps") and slots and not any(slots.values()):
        raise ValueError(
            f"checkpoint of {saved['stats']['steps']} steps keeps no tensor: was it loaded by "
            "torch.distributed.checkpoint without PerRank?"
        )


def check_tensors(what: str, tensors: Any) -> None:
    """Raise unless these are finite tensors, by slot and parameter.

    Args:
        what: they are called.
        tensors: perhaps damaged.

    Raises:
        ValueError: see above.

    Example:
        >>> check_tensors("tensors", {"residual": {"weight": 3}})
        Traceback (most recent call last):
        ...
        ValueError: checkpoint's residual of weight is a int, expected a tensor
    """
    _check_mapping(f"checkpoint's {what} are", tensors)
    for slot, by_name in tensors.items():
        _check_mapping(f"checkpoint's {slot} is", by_name)
        for name, tensor in by_name.items():
            _check_tensor(f"{slot} of {name}", tensor)


def check_fits(
    saved: Mapping[str, Any],
    recipe: Recipe,
    parameters: Mapping[str, Tensor],
    numels: Mapping[str, int],
) -> None:
    """Raise unless a checkpoint is of this recipe and model.

    Parameters of which nothing was kept yet, such as frozen ones, may be missing.

    Args:
        saved: what has passed `check_form`.
        recipe: the state's.
        parameters: the model's, by name.
        numels: elements of the part of each that the checkpoint says it holds.

    Raises:
        ValueError: the recipe has another name or keeps other tensors; a tensor or a place in a
            bucket is of no parameter; or a tensor is of another shape or dtype, or missing where
            others of its parameter are kept.
    """
    name = saved["recipe"]
    expect(name == recipe.name, "checkpoint is of recipe", name, repr(recipe.name))
    theirs, ours = saved["dim_orders"], dim_orders(parameters)
    for name in sorted({*theirs, *ours} & set(parameters)):
        if theirs.get(name) != ours.get(name):
            raise ValueError(
                f"checkpoint keeps {name} as it lay in memory, by its dimensions "
                f"{theirs.get(name, 'in order')}; now it lies by {ours.get(name, 'in order')}: "
                "convert the model as it was then, as to channels_last, before wrapping it"
            )
    tensors = saved["tensors"]
    slots, expected = sorted(map(str, tensors)), sorted(recipe.tensors)
    expect(set(tensors) == set(expected), "checkpoint keeps", slots, str(expected))
    for slot, name, tensor in flat_items(tensors):
        what = f"checkpoint's {slot} of {name}"
        if name not in parameters:
            raise ValueError(
                f"checkpoint holds {slot} of {name}, which is no parameter of the model"
            )
        came, shape = tuple(tensor.shape), (numels[name],)
        expect(came == shape, f"{what} has shape", came, str(shape))
        special = recipe.tensors[slot]
        dtypes = (special,) if special else (torch.float32, torch.float64)
        words = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        expect(tensor.dtype in dtypes, f"{what} has dtype", tensor.dtype, words)
    unknown = sorted({name for bucket in saved["buckets"] for name in bucket} - set(parameters))
    if unknown:
        raise ValueError(
            f"checkpoint's buckets hold {', '.join(unknown)}, no parameters of the model"
        )
    if saved["parameters"] not in (None, digest_of(parameters)):
        raise ValueError("checkpoint is of a model whose parameters have other names or sizes")
    names = {name for _, name, _ in flat_items(tensors)}
    for slot, by_name in tensors.items():
        lost = sorted(names - set(by_name))
        if lost:
            raise ValueError(f"checkpoint lacks {slot} of {', '.join(lost)}")


def check_whole(saved: Mapping[str, Any]) -> None:
    """Raise unless the tensors are those that were saved, to the bit.

    Args:
        saved: what has passed `check_form`. Its checksum is None where it was made by hand.

    Raises:
        ValueError: one is missing, or has changed.
    """
    # What summed the tensors of format 3 is gone: they are taken as they are.
    if saved["format"] != 3 and saved["checksum"] not in (None, checksum(saved["tensors"])):
        raise ValueError(
            "checkpoint is damaged: its tensors are not those that were saved, or not all of them. "
            "(torch.distributed.checkpoint mixes those of all ranks without PerRank.)"
        )


def with_clean_names(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint whose parameters are called by `clean_name`, as new ones are.

    Of a compiled model, those that were saved before had the names that `torch.compile` gives.

    Args:
        saved: what has passed `check_whole`, whose sum is of the old names.

    Returns:
        The same, or a copy with other names, without the digest of the old ones.
    """
    names = {name for _, name, _ in flat_items(saved["tensors"])}.union(*saved["buckets"])
    if all(name == clean_name(name) for name in names):
        return saved

    def renamed(by_name: Mapping[str, Any]) -> dict[str, Any]:
        return {clean_name(name): value for name, value in by_name.items()}

    return {
        **saved,
        "parameters": None,
        "buckets": [clean_names(bucket) for bucket in saved["buckets"]],
        "dim_orders": renamed(saved["dim_orders"]),
        "blocks": renamed(saved.get("blocks", {})),
        "tensors": {slot: renamed(by_name) for slot, by_name in saved["tensors"].items()},
    }


def check_entries(saved: Any, entries: Set[str]) -> None:
    """Raise unless this is a mapping that has some entries.

    Args:
        saved: a checkpoint, perhaps damaged.
        entries: their names.

    Raises:
        ValueError: see above.

    Example:
        >>> check_entries({"step": 3}, {"step", "stats"})
        Traceback (most recent call last):
        ...
        ValueError: checkpoint lacks stats
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"checkpoint is a {type(saved).__name__}, expected a mapping")
    missing = entries - set(saved)
    if missing:
        raise ValueError(f"checkpoint lacks {', '.join(sorted(missing))}")


def expect(fits: bool, what: str, value: object, expected: str) -> None:
    """Raise unless something in a checkpoint fits.

    Args:
        fits: whether it does.
        what: the words before its value.
        value: see above.
        expected: in words.

    Raises:
        ValueError: it does not.

    Example:
        >>> expect(False, "checkpoint has step", -1, "an int of 0 or more")
        Traceback (most recent call last):
        ...
        ValueError: checkpoint has step -1, expected an int of 0 or more
    """
    if not fits:
        raise ValueError(f"{what} {value!r}, expected {expected}")


def is_count(value: object) -> bool:
    """Whether this is an int of 0 or more; a bool is none.

    Example:
        >>> is_count(3), is_count(True), is_count(-1)
        (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_density(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 < value <= 1)


def _is_place(value: Any) -> bool:
    """A rank, and how many there are; None for any."""
    pair = isinstance(value, list) and len(value) == 2 and all(map(is_count, value))
    return value is None or (pair and value[0] < value[1])


def _is_part(value: Any) -> bool:
    """A kind, and a place with how many there are; None for whole parameters."""
    listed = isinstance(value, list) and len(value) == 3 and value[0] in ("slice", "shard")
    return value is None or (listed and _is_place(value[1:]))


def _check_mapping(what: str, value: object) -> None:
    expect(isinstance(value, Mapping), what, value, "a mapping")


def _check_buckets(buckets: list[Any]) -> None:
    for bucket in buckets:
        fits = isinstance(bucket, list) and {type(name) for name in bucket} == {str}
        expect(fits, "checkpoint has a bucket", bucket, "a list of names")
    counts = Counter(name for bucket in buckets for name in bucket)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ValueError(f"checkpoint's buckets hold {', '.join(twice)} more than once")


def _check_stats(stats: Any) -> None:
    _check_mapping("checkpoint's statistics are", stats)
    unknown = set(stats) - set(Stats().state_dict())
    if unknown:
        raise ValueError(f"checkpoint has unknown statistics: {', '.join(map(str, unknown))}")
    for name, count in stats.items():
        fits = _is_number(count) and 0 <= count < math.inf
        expect(fits, f"checkpoint's statistics have {name}", count, "a number of 0 or more")


def _check_tensor(what: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"checkpoint's {what} is a {type(tensor).__name__}, expected a tensor")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(
            f"checkpoint's {what} is {tensor.layout} on {tensor.device}, expected a dense tensor "
            "with its data"
        )
    if not tensor.isfinite().all():
        raise ValueError(f"checkpoint's {what} is not finite")
