"""Check that a checkpoint of local updates fits; name whatever is wrong with it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from ddp_compress.checkpoints.checkpoint import check_entries, expect, is_count
from ddp_compress.local.round import Round
from ddp_compress.step.sharded_model import local_of


def check_form(saved: Any, inner: Optimizer, round_: Round) -> None:
    """Raise unless this is a checkpoint of these.

    Args:
        saved: what `LocalUpdates.state_dict` gave, perhaps damaged since.
        inner: the optimizer of the local steps.
        round_: where ranks meet, with anchor, buffers and the outer optimizer.

    Raises:
        ValueError: an entry is missing, of another type or shape, or not finite.
    """
    check_entries(saved, {"inner", "outer", "anchor", "buffers", "passes"})
    passes = saved["passes"]
    expect(is_count(passes), "checkpoint has passes", passes, "an int of 0 or more")
    _check_tensors("anchor", saved["anchor"], round_.anchor.weights)
    _check_tensors("buffers", saved["buffers"], round_.buffers.last_synced)
    _check_optimizer("inner", saved["inner"], inner)
    _check_optimizer("outer", saved["outer"], round_.outer)
    for part in ("anchor", "outer"):
        if not is_finite(dict(saved[part])):
            raise ValueError(f"checkpoint's {part} is not finite")


def is_finite(tree: Any) -> bool:
    """Whether all tensors are, however deep in dicts, lists and tuples.

    Example:
        >>> import torch
        >>> is_finite({"step": 3, "momentum": [torch.ones(2), torch.tensor(torch.inf)]})
        False
    """
    tensors = (local_of(t) for t in tree_leaves(tree) if isinstance(t, Tensor))
    return all(t.isfinite().all() for t in tensors)


def _check_tensors(what: str, saved: Any, ours: Mapping[str, Tensor]) -> None:
    if not isinstance(saved, Mapping) or set(saved) != set(ours):
        raise ValueError(f"checkpoint's {what} is not of this model: other names")
    for name, tensor in ours.items():
        expected, came = _kind(tensor), _kind(saved[name])
        if came != expected:
            raise ValueError(f"checkpoint's {what} has {name} of {came}, expected {expected}")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


def _check_optimizer(what: str, saved: Any, ours: Optimizer) -> None:
    """More than `Optimizer.load_state_dict` will, and before anything is loaded."""
    if not _is_state_dict(saved):
        raise ValueError(f"checkpoint's {what} is no optimizer's state_dict")
    theirs = [len(group["params"]) for group in saved["param_groups"]]
    expected = [len(group["params"]) for group in ours.param_groups]
    if theirs != expected:
        raise ValueError(
            f"checkpoint's {what} optimizer has groups of {theirs} parameters, expected {expected}"
        )
    for group in saved["param_groups"]:
        missing = set(ours.defaults) - set(group)
        if missing:
            raise ValueError(
                f"checkpoint's {what} optimizer is no {type(ours).__name__}: its groups lack "
                f"{', '.join(sorted(missing))}"
            )


def _is_state_dict(saved: Any) -> bool:
    match saved:
        case {"state": Mapping() as state, "param_groups": list() as groups}:
            entries = all(isinstance(each, Mapping) for each in state.values())
            named = (isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups)
            return entries and all(named)
    return False
