"""Tensors kept for every parameter, laid out as the gradients come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddp_compress.layout import Layout


class ParameterStore:
    """Per-parameter tensors, stored side by side in the order of the latest bucket.

    DDP rebuilds its buckets after the first step and reverses parameters inside them. Values stay
    with their parameter: when a layout is new they are copied into its order.

    Args:
        tensors: the tensors kept for every parameter, by name: a dtype, or None for memory's.

    Example:
        >>> store = ParameterStore({"residual": None})
        >>> flat = store.arrange(Layout(("a", "b"), (1, 2)), torch.float32, torch.device("cpu"))
        >>> _ = flat["residual"].copy_(torch.tensor([1.0, 2.0, 3.0]))
        >>> store.arrange(Layout(("b", "a"), (2, 1)), torch.float32, torch.device("cpu"))
        {'residual': tensor([2., 3., 1.])}
    """

    def __init__(self, tensors: Mapping[str, torch.dtype | None]) -> None:
        self.tensors = tensors
        self._arenas: dict[Layout, dict[str, Tensor]] = {}
        self._views: dict[str, dict[str, Tensor]] = {slot: {} for slot in tensors}

    def arrange(
        self, layout: Layout, dtype: torch.dtype, device: torch.device
    ) -> Mapping[str, Tensor]:
        """The flat tensor [N] of every slot in a layout's order; zeros where nothing was kept.

        The tensors are the store's own: what is written to them stays.
        """
        arena = self._arenas.get(layout)
        dtypes = {slot: special or dtype for slot, special in self.tensors.items()}
        if arena is None or any(
            t.dtype != dtypes[slot] or t.device != device for slot, t in arena.items()
        ):
            arena = {slot: self._gather(slot, layout, dtypes[slot], device) for slot in dtypes}
            moved = set(layout.names)
            self._arenas = {
                known: flat for known, flat in self._arenas.items() if not moved & set(known.names)
            }
            self._arenas[layout] = arena
            for slot, flat in arena.items():
                views = flat.split(list(layout.sizes))
                self._views[slot].update(zip(layout.names, views, strict=True))
        return arena

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """A copy of every tensor, by slot and parameter, flat [numel]."""
        return {
            slot: {name: view.clone() for name, view in views.items()}
            for slot, views in self._views.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        """The tensors alone, without their arenas: a copy arranges its own."""
        return {"tensors": self.tensors, "_views": self.state_dict(), "_arenas": {}}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replace all that is kept by copies of checked tensors, by slot and parameter."""
        self._arenas = {}
        self._views = {
            slot: {name: t.detach().clone() for name, t in tensors[slot].items()}
            for slot in self.tensors
        }

    def _gather(
        self, slot: str, layout: Layout, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        flat = torch.zeros(layout.numel, dtype=dtype, device=device)
        for name, part in zip(layout.names, flat.split(list(layout.sizes)), strict=True):
            known = self._views[slot].get(name)
            if known is not None:
                part.copy_(known)
        return flat
