"""See when a backward pass of a sharded model is over, and which gradients came in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor  # noqa: TID251 - a type alone
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from ddp_compress.step.optimizers import parameters_of

End = Callable[[Sequence[Tensor], Exception | None], None]


class AfterBackward:
    """Calls a function whenever a backward pass of a sharded model has brought gradients.

    FSDP calls a parameter's hooks when its shard of the gradient is written, and finishes some of
    that in callbacks of the autograd engine. So the function is called in a callback that a
    callback has queued, behind all of FSDP's: gradients are final then, also where a model has
    several roots. Checkpoints that are reentrant run passes within the pass, so what counts is the
    first that comes to the model's outputs.

    FSDP does not recover from an error within a pass: so hooks take notes, and what is wrong is
    told at the end.

    Args:
        model: `fully_shard` was applied to it.
        parameters: its trained ones, by name, as the sharded ones that they are after a pass.
        end: called with those that have got a gradient, and with what is wrong, if anything is.
        begin: called when a pass comes to the model's outputs, before it brings gradients.

    Raises:
        ValueError: another one sees the model already.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        end: End,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        _refuse_second(model)
        self._model = weakref.ref(model)
        self._end = end
        self._begin = begin
        self._pass: weakref.ref[_Pass] | None = None  # the engine holds it, and lets go of it
        self._came: dict[int, Tensor] = {}
        self._streams: set[torch.cuda.Stream] = set()
        self._stepped: str | None = None  # an optimizer's name, within the pass
        self._known = {id(p) for p in parameters.values()}
        for parameter in parameters.values():
            parameter.register_post_accumulate_grad_hook(self._take)
        model.register_forward_hook(self._watch_outputs)

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """An optimizer is about to take a step.

        Raises:
            ValueError: it would apply gradients of a pass that came to no end.
        """
        ours = (p for p in parameters_of(optimizer) if id(p) in self._came)
        if all(p.grad is None for p in ours):
            return
        name = type(optimizer).__name__
        if self._alive is not None:
            self._stepped = name
            return
        raise ValueError(
            f"{name} is about to apply gradients that other replicas have not seen: their backward "
            "pass came to no end. Call optimizer.zero_grad() and run the step again; if an error "
            "was raised within backward, FSDP needs the model to be made anew"
        )

    @property
    def _alive(self) -> _Pass | None:
        """The pass under way; one that raised is gone."""
        return None if self._pass is None else self._pass()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _watch_outputs(self, module: nn.Module, args: object, output: object) -> None:
        """A hook of the model."""
        if torch.is_grad_enabled():
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(self._start)

    def _start(self, grad: Tensor) -> None:
        """A hook of an output, or called where gradients come past all of them."""
        if self._alive is None:
            self._came, self._stepped = {}, None
            begun = _Pass(self._finish)
            self._pass = weakref.ref(begun)
            self._begin()
            _queue(begun)

    def _take(self, parameter: Tensor) -> None:
        """A hook of every parameter."""
        if self._alive is None:
            self._start(parameter)
        self._came[id(parameter)] = parameter
        if parameter.is_cuda:
            self._streams.add(torch.cuda.current_stream(parameter.device))

    def _finish(self) -> None:
        """All gradients are final."""
        came, self._came, self._pass = list(self._came.values()), {}, None
        streams, self._streams = self._streams, set()
        for stream in streams:  # FSDP waits for them only in what it calls the last backward
            torch.cuda.current_stream(stream.device).wait_stream(stream)
        failure = self._failure()
        if came or failure:
            self._end(came, failure)

    def _failure(self) -> Exception | None:
        if self._stepped is not None:
            return ValueError(
                f"{self._stepped}.step() was called within backward, before gradients have met "
                "those of other replicas: call it after backward"
            )
        model = self._model()
        for name, parameter in model.named_parameters() if model is not None else ():
            sharded = isinstance(parameter, DTensor) and id(parameter) not in self._known
            if sharded and parameter.requires_grad and parameter.grad is not None:
                return ValueError(
                    f"{name} has a gradient, and is another or was frozen when the model was "
                    "attached to, so it would go past other replicas: unfreeze, and load weights "
                    "with assign=True, before attach"
                )
        return None


class _Pass:
    """A callback of the autograd engine, which holds it until the pass is over or has raised."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish

    def __call__(self) -> None:
        _queue(self._end)

    def _end(self) -> None:
        self._finish()


_followed: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _refuse_second(model: nn.Module) -> None:
    if any(module in _followed for module in model.modules()):
        raise ValueError(
            "the gradients of this sharded model, or of modules in it, are exchanged already, by "
            "attach or by LocalUpdates: give LocalUpdates a state made by CompressionState(model, "
            "recipe, process_group), not by attach; to begin anew, make the model anew"
        )
    _followed.update(model.modules())


def _queue(callback: Callable[[], None]) -> None:
    """Let the autograd engine call it at the end of the pass."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def _tensors(output: Any) -> Iterator[Tensor]:
    """All tensors of a model's output."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            for each in fields(leaf):
                yield from _tensors(getattr(leaf, each.name))
