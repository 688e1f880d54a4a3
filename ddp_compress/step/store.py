"""Tensors kept for every parameter, laid out as the gradients come."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddp_compress.checkpoints.checkpoint import copied
from ddp_compress.message.arena import Arena
from ddp_compress.message.layout import Layout
from ddp_compress.ops.devices import record_stream
from ddp_compress.ops.large_pages import in_large_pages

_Place = tuple[Layout, torch.dtype, torch.device]


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
        self._arenas: dict[_Place, Arena] = {}
        self._loose: dict[str, dict[str, Tensor]] = {slot: {} for slot in tensors}  # in no arena

    def arrange(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> Arena:
        """The flat tensor [N] of every slot in a layout's order; zeros where nothing was kept.

        The arena is the store's own: what is written to its tensors, or put in their place, stays.
        """
        place = layout, dtype, device
        if place not in self._arenas:
            self._loosen(layout)
            self._arenas[place] = Arena(
                {
                    slot: self._gather(slot, layout, special or dtype, device)
                    for slot, special in self.tensors.items()
                }
            )
        return self._arenas[place]

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """A copy of every tensor, by slot and parameter, flat [numel]."""
        parts = {slot: dict(loose) for slot, loose in self._loose.items()}
        for (layout, *_), arena in self._arenas.items():
            for slot, flat in arena.items():
                parts[slot].update(layout.split(flat))
        return copied(parts)

    def kept(self, slot: str) -> list[Tensor]:
        """What is kept in a slot, in parts: not to be written."""
        return [
            *(arena[slot] for arena in self._arenas.values() if slot in arena),
            *self._loose.get(slot, {}).values(),
        ]

    def __getstate__(self) -> dict[str, Any]:
        """The tensors alone, without their arenas: a copy arranges its own."""
        return {"tensors": self.tensors, "_loose": self.state_dict(), "_arenas": {}}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replace all that is kept by copies of checked tensors, by slot and parameter."""
        self._loose = copied({slot: tensors[slot] for slot in self.tensors})
        self._arenas = {}

    def _loosen(self, layout: Layout) -> None:
        """Give up the arenas that hold a parameter of a layout."""
        names = set(layout.names)
        for place in [place for place in self._arenas if names & set(place[0].names)]:
            for slot, flat in self._arenas.pop(place).items():
                self._loose[slot].update(place[0].split(flat))

    def _gather(
        self, slot: str, layout: Layout, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """A layout's parameters side by side, no longer loose."""
        flat = in_large_pages(torch.empty(layout.numel, dtype=dtype, device=device)).zero_()
        for name, part in layout.split(flat).items():
            known = self._loose[slot].pop(name, None)
            if known is not None:
                part.copy_(known)
                record_stream(known)  # perhaps of a side stream's memory, which goes on without us
        return flat
