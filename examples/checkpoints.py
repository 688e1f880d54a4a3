"""Checkpoints that a kill at any moment leaves whole.

FOLDER/step-40-of-4/rank-0.pt  what one of four ranks carries from step 40 to the next
FOLDER/latest                  the name of the newest complete checkpoint
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, Protocol

import torch
import torch.distributed as dist

import ddp_compress as dc


class Part(Protocol):
    """A part of a training: a model, an optimizer, a CompressionState …"""

    def state_dict(self) -> Mapping[str, Any]:
        """What it carries from step to step."""

    def load_state_dict(self, state_dict: Any) -> object:
        """Take that back."""


class Checkpoints:
    """Saves the parts of a training every so many steps, on all ranks together.

    Args:
        folder: one that all hosts share.
        every: steps.
        parts: by name. "compression" differs from rank to rank.
    """

    def __init__(self, folder: Path, every: int, parts: Mapping[str, Part]) -> None:
        self.folder = folder
        self.every = every
        self.parts = parts
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int) -> None:
        """Save after a step, if it is one to save after."""
        if step % self.every:
            return
        name = f"step-{step}-of-{dist.get_world_size()}"
        (self.folder / name).mkdir(exist_ok=True)
        saved = {"step": step} | {key: part.state_dict() for key, part in self.parts.items()}
        write(
            self.folder / name / f"rank-{dist.get_rank()}.pt", lambda file: torch.save(saved, file)
        )
        dist.barrier()  # only what all ranks have saved is complete
        if dist.get_rank() == 0:
            before = self._latest()
            write(self.folder / "latest", lambda file: file.write(name.encode()))
            for old in self.folder.glob("step-*"):
                if old.name not in (name, before):
                    shutil.rmtree(old)

    def load(self, device: torch.device) -> int:
        """Take back the newest complete checkpoint, whatever number of ranks saved it.

        Returns:
            The step that it was saved after; 0 if there is none.
        """
        names = [self._latest()]
        dist.broadcast_object_list(names)  # a rank that sees another folder must not go its own way
        if names[0] is None:
            return 0
        rank, world_size = dist.get_rank(), dist.get_world_size()
        files = [
            self.folder / names[0] / f"rank-{each}.pt"
            for each in range(int(names[0].rpartition("-")[2]))
        ]
        saved = read(files[rank % len(files)], device)
        if "dropout" in self.parts and len(files) != world_size:
            raise ValueError(f"what {len(files)} ranks kept of dropped units fits as many alone")
        if "compression" in self.parts and len(files) != world_size:
            host = torch.device("cpu")  # all ranks' together may be too much for a GPU
            everyone = [read(file, host)["compression"] for file in files]
            saved["compression"] = dc.redistribute(everyone, rank, world_size)
        for key, part in self.parts.items():
            part.load_state_dict(saved[key])
        return int(saved["step"])

    def _latest(self) -> str | None:
        mark = self.folder / "latest"
        return mark.read_text() if mark.exists() else None


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """Tensors and plain values: a file cannot make us run code."""
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (EOFError, RuntimeError, UnpicklingError) as error:
        raise RuntimeError(
            f"{path} cannot be read. If it is damaged, go on from the checkpoint before: write the "
            f"name of its folder into {path.parent.with_name('latest')}"
        ) from error
    return saved


def write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, and return when it is on the disk."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        save(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name
    finally:
        os.close(folder)
