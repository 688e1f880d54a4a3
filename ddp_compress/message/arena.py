"""The tensors kept for one layout, and the way back to before the latest step."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ddp_compress.message.entries import Entries
from ddp_compress.ops.large_pages import in_large_pages


class Arena(dict[str, Tensor]):
    """The flat tensors [N] of one layout, by slot, and the way back to before the latest step.

    A step writes memory's next tensors while the last ones stay (`next`, `advance`); of other
    slots, where it writes a few entries, those are remembered (`overwrite`).

    Example:
        >>> arena = Arena({"residual": torch.tensor([1.0, 2.0])})
        >>> _ = arena.next("residual").copy_(arena["residual"] + 1)
        >>> arena.advance("residual")
        >>> arena
        {'residual': tensor([2., 3.])}
        >>> arena.undo()
        >>> arena
        {'residual': tensor([1., 2.])}
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(tensors or {})
        self._others: dict[str, Tensor] = {}  # of the step before, or free to be written
        self._replaced: list[str] = []
        self._overwritten: list[tuple[str, Entries]] = []

    def reserve(self, slots: Iterable[str]) -> None:
        """Begin a step: have room for its next tensors, and no way back before the last step."""
        self._replaced, self._overwritten = [], []
        for slot in slots:
            self.next(slot)

    def next(self, slot: str) -> Tensor:
        """A tensor like a slot's, of any content, to be written and then put into its place."""
        if slot not in self._others:
            self._others[slot] = in_large_pages(torch.empty_like(self[slot]))
        return self._others[slot]

    def advance(self, slot: str) -> None:
        """Put a slot's next tensor, which has been written, into its place."""
        self._others[slot], self[slot] = self[slot], self._others[slot]
        self._replaced.append(slot)

    def overwrite(self, slot: str, entries: Entries) -> None:
        """Write entries into a slot's tensor, one that the step does not replace."""
        assert slot not in self._replaced
        self._overwritten.append((slot, entries.of(self[slot])))
        entries.write_to(self[slot])

    def undo(self) -> None:
        """Go back to before the latest step, bit for bit."""
        for slot in self._replaced:
            self._others[slot], self[slot] = self[slot], self._others[slot]
        for slot, entries in reversed(self._overwritten):
            entries.write_to(self[slot])
        self._replaced, self._overwritten = [], []

    def settle(self) -> None:
        """Forget the way back. The host keeps the room for the next step, a GPU gives it free."""
        self._replaced, self._overwritten = [], []
        if any(tensor.is_cuda for tensor in self.values()):
            self._others = {}
