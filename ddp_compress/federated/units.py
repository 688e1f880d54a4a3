"""Find a model's hidden units, and the dimensions of its tensors that are theirs, by a trace."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import fx, nn

Form = Literal["any", "maps", "flat", "features"]
"""Where a value has its units: nowhere yet; dimension 1 of maps; the same, flattened; the last."""

# Modules with tensors, and their attributes that say how large these are, dimension by dimension.
_CONVOLUTIONS: dict[type, Form] = {nn.Conv1d: "maps", nn.Conv2d: "maps", nn.Conv3d: "maps"}
_LAYERS: dict[type, Form] = {nn.Linear: "features", **_CONVOLUTIONS}
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
WIDTHS: Mapping[type, tuple[str, ...]] = {
    nn.Linear: ("out_features", "in_features"),
    **dict.fromkeys(_CONVOLUTIONS, ("out_channels", "in_channels")),
    **dict.fromkeys(_NORMS, ("num_features",)),
}
TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
# What treats every unit alike and by itself: entry by entry, or map by map.
_BY_ENTRY: set[Any] = {
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.dropout),
    *(F.tanh, F.sigmoid, F.softplus, F.hardtanh, F.hardswish, F.hardsigmoid),
    *(torch.relu, torch.tanh, torch.sigmoid, torch.add, torch.sub, torch.mul, torch.div),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.imul),
    *("relu", "tanh", "sigmoid", "add", "sub", "mul", "div", "contiguous", "float"),
}
_BY_MAP: set[Any] = {
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.Upsample, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}
_FLATTEN: set[Any] = {nn.Flatten, torch.flatten, "flatten"}
# What mixes all units, so that all of them must be there.
_MIXING: set[Any] = {nn.Softmax, nn.LogSoftmax, F.softmax, F.log_softmax, "softmax", "log_softmax"}


@dataclass(frozen=True)
class Axis:
    """A tensor's dimension that has ``block`` entries, side by side, for each unit of a group.

    A group is called after the first layer that gives its units; None where none is ever dropped.
    """

    group: str | None
    block: int = 1


@dataclass(frozen=True)
class Units:
    """The hidden units of a model.

    Attributes:
        sizes: how many units a group has; those of input and output are in none.
        layers: the group that a layer's outputs are, for every layer that has one.
        axes: of every module with tensors, what their leading dimensions are: outputs, inputs.
    """

    sizes: Mapping[str, int]
    layers: Mapping[str, str]
    axes: Mapping[str, tuple[Axis, ...]]


def hidden_units(model: nn.Module) -> Units:
    """Follow a model's units through its forward, as `torch.fx` sees it.

    Units are a linear layer's outputs and a convolution's filters. Those of two layers that are
    added are one group: they come and go together. What the inputs hold, and what the model
    returns, is in no group; nor is what goes through a softmax.

    Raises:
        ValueError: the model cannot be traced, does what is not supported, or hides no units.

    Example:
        >>> model = nn.Sequential(
        ...     nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.Linear(5, 2)
        ... )
        >>> units = hidden_units(model)
        >>> units.sizes
        {'0': 4, '3': 5}
        >>> units.axes["3"]
        (Axis(group='3', block=1), Axis(group='0', block=6))
    """
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be traced by torch.fx, so its hidden units are not "
            f"known: {error}"
        ) from error
    walk = _Walk(graph)
    walk.run()
    units = walk.found()
    if not units.sizes:
        raise ValueError(f"{type(model).__name__} has no hidden units that could be dropped")
    _refuse_tied(model, units)
    return units


@dataclass(frozen=True)
class _Value:
    """What is known of a tensor on its way: whose units it holds, None for no group's, and how."""

    group: str | None = None
    form: Form = "any"


class _Walk(fx.Interpreter):
    """Runs a forward on `_Value` in place of tensors."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # our errors say where they come from
        self._joined: dict[str, str | None] = {}
        self._sizes: dict[str, int] = {}
        self._axes: dict[str, tuple[Axis, ...]] = {}

    def found(self) -> Units:
        """What the walk has found."""
        layers = {name: self._group(name) for name in self._sizes}
        axes = {
            name: tuple(replace(axis, group=self._group(axis.group)) for axis in each)
            for name, each in self._axes.items()
        }
        return Units(
            {name: self._sizes[name] for name, group in layers.items() if name == group},
            {name: group for name, group in layers.items() if group is not None},
            axes,
        )

    # ------------------------------------------------------------------------ the graph's nodes

    def run_node(self, n: fx.Node) -> Any:
        self._node = n.name
        return super().run_node(n)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> _Value:
        return _Value()

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> NoReturn:
        raise ValueError(
            f"FederatedDropout does not support {target}, a tensor that forward uses by itself: "
            "it cannot know which units it belongs to"
        )

    def call_module(self, target: Any, args: Any, kwargs: Any) -> _Value:
        module = self.fetch_attr(target)
        kind = type(module)
        if kind in _LAYERS:
            return self._layer(target, module, _values(args, kwargs)[0])
        if kind in _NORMS:
            return self._norm(target, module, _values(args, kwargs)[0])
        what = f"{target}, a {kind.__name__}"
        if kind in _FLATTEN:
            return self._flatten(what, _values(args, kwargs)[0], module.start_dim, module.end_dim)
        return self._call(what, kind, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> _Value:
        what = f"{self._node} in forward"
        if target in _FLATTEN:
            dims = {"start_dim": 0, "end_dim": -1}
            dims |= dict(zip(dims, args[1:], strict=False)) | kwargs
            value = _values(args, kwargs)[0]
            return self._flatten(what, value, dims["start_dim"], dims["end_dim"])
        return self._call(what, target, args, kwargs)

    call_method = call_function  # a method's name stands for a function: its tensor comes first

    def output(self, target: Any, args: Any, kwargs: Any) -> None:
        for value in _values(args, kwargs):
            self._join(value.group, None)

    # -------------------------------------------------------------------------------- the rules

    def _call(self, what: str, function: Any, args: Any, kwargs: Any) -> _Value:
        """What has no tensors of its own."""
        values = _values(args, kwargs)
        forms = {value.form for value in values} - {"any"}
        if function in _BY_ENTRY and len(forms) <= 1:
            for one in values[1:]:
                self._join(values[0].group, one.group, what)
            return _Value(values[0].group, *forms)
        if function in _BY_MAP and forms <= {"maps"}:
            return values[0]
        if function in _MIXING:
            self._join(values[0].group, None)
            return values[0]
        if isinstance(function, type) or forms:
            self._refuse(what)
        return _Value()  # of inputs alone, before the first layer, anything may be made

    def _layer(self, name: str, module: Any, value: _Value) -> _Value:
        form = _LAYERS[type(module)]
        if value.form not in ("any", form) and (form, value.form) != ("features", "flat"):
            self._refuse(f"{name}, a {type(module).__name__} of {value.form}")
        if getattr(module, "groups", 1) != 1:
            self._refuse(f"{name}, a {type(module).__name__} with groups={module.groups}")
        outputs, inputs = (getattr(module, width) for width in WIDTHS[type(module)])
        self._record(name, module, Axis(name), self._axis(name, value, inputs))
        self._sizes[name] = outputs
        return _Value(name, form)

    def _norm(self, name: str, module: Any, value: _Value) -> _Value:
        self._record(name, module, self._axis(name, value, module.num_features))
        return value

    def _flatten(self, what: str, value: _Value, start: int, end: int) -> _Value:
        if value.form == "any":
            return value
        if (start, end) != (1, -1):
            self._refuse(f"{what} from dimension {start} to {end}")
        return replace(value, form="flat" if value.form == "maps" else value.form)

    def _record(self, name: str, module: nn.Module, *axes: Axis) -> None:
        if name in self._axes:
            self._refuse(f"{name}, which forward calls twice")
        others = {key for key, _ in chain(module.named_parameters(), module.named_buffers())}
        if others := others - TENSORS:  # of weight_norm, spectral_norm, pruning
            self._refuse(f"{name}, a {type(module).__name__} with {', '.join(sorted(others))}")
        self._axes[name] = axes

    def _axis(self, name: str, value: _Value, width: int) -> Axis:
        """The dimension of a module's tensors on which a value arrives."""
        if value.group is None:
            return Axis(None)
        block, rest = divmod(width, self._sizes[value.group])
        if rest or (block != 1 and value.form != "flat"):
            self._refuse(f"{name}: its {width} inputs for the {self._sizes[value.group]} units of")
        return Axis(value.group, block)

    # ---------------------------------------------------------------------------- groups of units

    def _group(self, name: str | None) -> str | None:
        """The group that a layer's units have been joined to."""
        while name is not None and self._joined.get(name, name) != name:
            name = self._joined[name]
        return name

    def _join(self, one: str | None, other: str | None, what: str = "") -> None:
        """Let the units of two groups come and go together, or, where one is None, stay."""
        groups = [self._group(name) for name in (one, other)]
        if None in groups:
            self._joined |= {name: None for name in groups if name is not None}
            return
        first, second = (name for name in groups if name is not None)
        if self._sizes[first] != self._sizes[second]:
            self._refuse(f"{what} on {self._sizes[first]} and {self._sizes[second]} units")
        self._joined[second] = first

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"FederatedDropout does not support {what}. It follows units through Linear, Conv1d to "
            "Conv3d, BatchNorm, activations, pooling, dropout, Flatten(1) and sums"
        )


def _values(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[_Value]:
    """All tensors among arguments."""
    found: list[_Value] = []
    fx.node.map_aggregate(
        (tuple(args), dict(kwargs)),
        lambda leaf: found.append(leaf) if isinstance(leaf, _Value) else None,
    )
    return found


def _refuse_tied(model: nn.Module, units: Units) -> None:
    """Raise where a module that changes its size has a parameter of another one."""
    owners: dict[int, tuple[str, str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{key}" if name else key
            other, first = owners.setdefault(id(parameter), (name, full))
            if other != name and {name, other} & units.axes.keys():
                raise ValueError(
                    f"FederatedDropout does not support {full}, which is tied to {first}: each "
                    "would keep units of its own"
                )
