"""Checkpoints of which the newest is found again, and that a kill at any moment leaves whole."""

import re
import shutil
from pathlib import Path

from ddp_compress.checkpoints import files, folder
from ddp_compress.checkpoints.stateful import Stateful
from ddp_compress.checks import check_count
from ddp_compress.transport.together import everyones, together

STEP = re.compile(r"step-\d+")


class Checkpoints:
    """Saves a training after some steps, and goes on from the newest complete checkpoint.

    ::

        FOLDER/step-40/rank-0-of-4.pt  what one of four ranks carries from step 40 to the next
        FOLDER/latest                  the name of the newest complete checkpoint

    All ranks call `save` and `load` together, and what fails on one is an error on all of them. A
    checkpoint is marked as the latest when all ranks have saved; it and the one before are kept.

    Args:
        folder: one that all hosts share. Where some have their own, the same ranks must come back
            to them, which is else an error; and a kill in the moment of marking may leave marks of
            two checkpoints, between which `load` then asks to choose.
        parts: whatever has a ``state_dict``, by name.

    Attributes:
        folder: see above.
        parts: see above.

    Example:
        >>> import tempfile, torch, ddp_compress as dc
        >>> model = torch.nn.Linear(4, 2)
        >>> state = dc.CompressionState(model, dc.recipes.topk(density=0.5))
        >>> checkpoints = Checkpoints(tempfile.mkdtemp(), model=model, compression=state)
        >>> checkpoints.load()
        0
        >>> checkpoints.save(step=40)
        >>> checkpoints.load()
        40
    """

    def __init__(self, folder: Path | str, /, **parts: Stateful) -> None:
        self.folder = Path(folder)
        self.parts = parts

    def __repr__(self) -> str:
        return f"Checkpoints({str(self.folder)!r}, {', '.join(self.parts)})"

    def save(self, step: int) -> None:
        """Save what is to go on after a step.

        Raises:
            RuntimeError: on every rank, where one could not write. Names the file and what to do.
        """
        check_count("step", step, least=0)
        name = f"step-{step}"
        folder.save(self.folder / name, **self.parts)
        together(lambda: self._mark(name))  # only what all ranks have saved is complete

    def load(self) -> int:
        """Take back the newest complete checkpoint, whatever number of ranks saved it.

        Returns:
            The step that it was saved after; 0 if there is none.

        Raises:
            RuntimeError: on every rank, where something on one is missing, damaged or does not
                fit. Names the file and what to do.
        """
        name, *others = names = everyones(together(self._latest))
        if set(others) - {name}:
            found = ", ".join(f"rank {rank}: {each or 'none'}" for rank, each in enumerate(names))
            raise RuntimeError(
                f"ranks must find the same latest checkpoint in {self.folder}, but find {found}: "
                "let all hosts share the folder, or write the name of one that all of them have "
                f"into every host's {self.folder / 'latest'}"
            )
        if not name:
            return 0
        try:
            folder.load(self.folder / name, **self.parts)
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}. To go on from another checkpoint, write the name of its folder into "
                f"{self.folder / 'latest'}"
            ) from error
        return int(name.removeprefix("step-"))

    def _mark(self, name: str) -> None:
        """Name the newest checkpoint, and keep the one before: one rank does so in every folder."""
        if not folder.is_first(self.folder / name):
            return
        steps = self._steps()
        try:
            before = {self._latest()}
        except RuntimeError:  # it names one that somebody has removed
            before = steps
        if before == {name}:
            return  # saved once more
        files.write(self.folder / "latest", lambda file: file.write(name.encode()))
        for old in steps - before - {name}:
            shutil.rmtree(self.folder / old)

    def _steps(self) -> set[str]:
        """The checkpoints there are; other folders are others'."""
        found = (each.name for each in self.folder.glob("step-*") if each.is_dir())
        return set(filter(STEP.fullmatch, found))

    def _latest(self) -> str:
        mark = self.folder / "latest"
        if not mark.exists():
            return ""
        name = mark.read_bytes().decode(errors="replace").strip()
        steps = self._steps()
        if name not in steps:
            there = ", ".join(sorted(steps)) or "there is none"
            raise RuntimeError(
                f"{mark} says {name!r}, expected the name of a folder beside it. Write one of "
                f"these into it: {there}. To start anew, remove it"
            )
        return name
