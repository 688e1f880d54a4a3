"""What an optimizer wraps, its momentum, and whether its steps need other ranks."""

import inspect
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# Attributes of Horovod's optimizer and `LocalUpdates`, of ZeRO's, of `PostLocalSGDOptimizer`.
MEETS_RANKS = ("synchronize", "consolidate_state_dict", "averager")

_COLLECTIVES = (
    *("all_gather", "all_reduce", "all_to_all", "allgather", "allreduce", "reduce_scatter"),
    *("average_parameters", "barrier", "batch_isend_irecv", "broadcast_object"),
    *("rpc_async", "rpc_sync"),
)


def parameters_of(optimizer: Any) -> list[Tensor]:
    """The parameters in an optimizer's groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def layers(optimizer: object) -> list[Any]:
    """An optimizer and all that it wraps, however deep and whatever the attributes are called.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)])
        >>> sgd.lookahead = [torch.optim.Adam([torch.zeros(1)])]
        >>> [type(each).__name__ for each in layers(sgd)]
        ['SGD', 'Adam']
    """
    found: list[Any] = []
    waiting = [optimizer]
    while waiting:
        each = waiting.pop(0)
        if not any(each is other for other in found):
            found.append(each)
            waiting += filter(_is_optimizer, _held(each))
    return found


def _held(owner: object) -> Iterator[object]:
    """What attributes hold, also in lists and dicts; not what is kept of every parameter."""
    for name, value in getattr(owner, "__dict__", {}).items():
        if isinstance(value, Mapping):
            yield from () if name == "state" else value.values()
        elif isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _is_optimizer(value: object) -> bool:
    """Some wrappers are no `Optimizer`; schedulers, which step too, have no groups."""
    return isinstance(value, Optimizer) or (
        callable(getattr(value, "step", None)) and hasattr(value, "param_groups")
    )


def momentum_of(group: Mapping[str, Any]) -> float:
    """The factor of the first moment, such as Adam's, of a group of parameters; 0 for none.

    Example:
        >>> momentum_of({"betas": (0.9, 0.999)}), momentum_of({"beta1": None, "rho": 0.9})
        (0.9, 0.0)
    """
    named = [group[name] for name in ("momentum", "betas", "beta1") if name in group]
    values = named or [group.get("beta")]  # beside these, beta is of something else
    firsts = (v[0] if isinstance(v, list | tuple) and v else v for v in values)
    return next((float(v) for v in firsts if isinstance(v, int | float | Tensor) and v), 0.0)


def collective_in_step(optimizer: object) -> str | None:
    """What ``step()`` calls that other ranks must call too, by its name in the code; None if none.

    Followed are the optimizer's own methods and the functions beside them.

    Example:
        >>> import torch
        >>> class Averaging(torch.optim.SGD):
        ...     def step(self):
        ...         super().step()
        ...         self.average()
        ...
        ...     def average(self):
        ...         [torch.distributed.all_reduce(p) for p in self.param_groups[0]["params"]]
        >>> collective_in_step(Averaging([torch.zeros(1)]))
        'all_reduce'
    """
    seen: set[CodeType] = set()
    waiting: list[Any] = [type(optimizer).step]  # type: ignore[attr-defined]
    while waiting:
        function = inspect.unwrap(waiting.pop())
        code = getattr(function, "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        for name in _names(code):
            if name == "broadcast" or name.startswith(_COLLECTIVES):
                return name
            neighbor = function.__globals__.get(name)
            if getattr(neighbor, "__module__", None) == function.__module__:
                waiting.append(neighbor)
            waiting.append(getattr(type(optimizer), name, None))
    return None


def _names(code: CodeType) -> Iterator[str]:
    """All that a function's code names, in functions within it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
