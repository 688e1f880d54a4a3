"""Warn where a model's weights are loaded without the memory that belongs to them."""

import warnings
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ddp_compress.step.sharded_model import local_of

HASHED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Restored:
    """Tells whether a model's weights were loaded between two passes, and memory was not.

    Weights that are other ones for a while, such as averaged ones to evaluate, and then are back
    are no matter.

    Args:
        parameters: the model's, by name.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> restored = Restored(dict(model.named_parameters()))
        >>> restored.watch(model)
        >>> _ = model.load_state_dict({name: 2 * p for name, p in model.named_parameters()})
        >>> restored.weights_alone
        True
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._before: list[int] | None = None  # of the weights, when the first were loaded
        self._with_memory = False
        self._warned = False
        self._handle: RemovableHandle | None = None

    def watch(self, module: nn.Module) -> None:
        """See what is loaded into a module: the model, or one that holds it."""
        self.stop()
        self._handle = module.register_load_state_dict_pre_hook(BeforeLoading(self))
        weakref.finalize(self, self._handle.remove)

    def stop(self) -> None:
        """See no more."""
        if self._handle is not None:
            self._handle.remove()

    def weights(self) -> None:
        """Weights are about to be loaded."""
        if self._before is None:
            self._before = self._hashes()

    def memory(self) -> None:
        """Memory was loaded."""
        self._with_memory = True

    @property
    def weights_alone(self) -> bool:
        """Whether weights are other ones than before they were loaded, and memory was not."""
        loaded = self._before is not None and not self._with_memory
        return loaded and self._before != self._hashes()

    def check_pass(self, remembers: bool) -> None:
        """Warn, once, where a pass follows upon weights that were loaded without what is kept."""
        if remembers and self.weights_alone and not self._warned:
            self._warned = True
            warnings.warn(
                "the model's weights were loaded, but not the memory of its CompressionState, "
                "which still holds what steps beyond these weights have left: save "
                "state.state_dict() with the model's and load both, as after a search for a "
                "learning rate; or make a new state",
                stacklevel=2,
            )
        self._before, self._with_memory = None, False

    def _hashes(self) -> list[int]:
        return weight_hashes(self._parameters.values())


def weight_hashes(parameters: Iterable[Tensor]) -> list[int]:
    """Numbers that equal weights share, of those that are trained.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> weight_hashes([weight]) == weight_hashes([nn.Parameter(2 * weight)])
        False
    """
    return [
        int(torch.hash_tensor(local_of(p).detach()).view(torch.int64))
        for p in parameters
        if p.dtype in HASHED and p.requires_grad and local_of(p).numel() and not p.is_meta
    ]


class BeforeLoading:
    """A hook of a module that copies and pickles of it are free of, even without this package."""

    def __init__(self, restored: Restored) -> None:
        self._restored = weakref.ref(restored)

    def __call__(self, module: nn.Module, *_: Any) -> None:
        """Weights are about to be loaded into the module."""
        restored = self._restored()
        if restored is not None:
            restored.weights()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (chain,)  # takes any arguments, and does nothing with them
