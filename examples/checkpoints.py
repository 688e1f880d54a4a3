"""Checkpoints that a kill at any moment leaves whole.

FOLDER/step-40-of-4/rank-0.pt  what one of four ranks carries from step 40 to the next
FOLDER/latest                  the name of the newest complete checkpoint
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar
from zipfile import ZipFile

import torch
import torch.distributed as dist

import ddp_compress as dc

T = TypeVar("T")
WORDS = 4096  # bytes of an error that other ranks are told


class Part(Protocol):
    """A part of a training: a model, an optimizer, a CompressionState …"""

    def state_dict(self) -> Mapping[str, Any]:
        """What it carries from step to step."""

    def load_state_dict(self, state_dict: Any) -> object:
        """Take that back."""


class Checkpoints:
    """Saves the parts of a training every so many steps, on all ranks together.

    What fails on one rank is an error on all of them.

    Args:
        folder: one that all hosts share.
        every: steps.
        parts: by name. "compression" differs from rank to rank.
        ranks_per_node: how many of them have a slice each of what is kept; 1 for all of it.
    """

    def __init__(
        self, folder: Path, every: int, parts: Mapping[str, Part], ranks_per_node: int = 1
    ) -> None:
        self.folder = folder
        self.every = every
        self.parts = parts
        self.ranks_per_node = ranks_per_node
        together(lambda: folder.mkdir(parents=True, exist_ok=True))

    def save(self, step: int) -> None:
        """Save after a step, if it is one to save after."""
        if step % self.every:
            return
        name = f"step-{step}-of-{dist.get_world_size()}"
        together(lambda: self._write(name, step))
        together(lambda: self._mark(name))  # only what all ranks have saved is complete

    def load(self, device: torch.device) -> int:
        """Take back the newest complete checkpoint, whatever number of ranks saved it.

        Returns:
            The step that it was saved after; 0 if there is none.
        """
        # A rank that sees another folder must not go its own way.
        name = everyones(together(self._latest))[0]
        if not name:
            return 0
        size = int(name.rpartition("-")[2])
        files = [self.folder / name / f"rank-{each}.pt" for each in range(size)]
        if "dropout" in self.parts and size != dist.get_world_size():
            raise ValueError(f"what {size} ranks kept of dropped units fits as many alone")
        saved = together(lambda: self._read(files, device))
        together(lambda: self._take_back(saved, files[dist.get_rank() % size]))
        return int(saved["step"])

    def _write(self, name: str, step: int) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        saved = {"step": step} | {key: part.state_dict() for key, part in self.parts.items()}
        file = self.folder / name / f"rank-{dist.get_rank()}.pt"
        write(file, lambda opened: torch.save(saved, opened))

    def _mark(self, name: str) -> None:
        """Rank 0 names the newest checkpoint, and keeps the one before."""
        if dist.get_rank():
            return
        before = self._latest()
        write(self.folder / "latest", lambda file: file.write(name.encode()))
        for old in self.folder.glob("step-*"):
            if old.name not in (name, before):
                shutil.rmtree(old)

    def _latest(self) -> str:
        mark = self.folder / "latest"
        if not mark.exists():
            return ""
        name = mark.read_bytes().decode(errors="replace").strip()
        if not re.fullmatch(r"step-\d+-of-[1-9]\d*", name) or not (self.folder / name).is_dir():
            there = sorted(each.name for each in self.folder.glob("step-*"))
            raise RuntimeError(
                f"{mark} says {name!r}, expected the name of a folder beside it. Write one of "
                f"these into it: {', '.join(there) or 'there is none'}. To start anew, remove it"
            )
        return name

    def _read(self, files: list[Path], device: torch.device) -> dict[str, Any]:
        """This rank's file; of other ranks or nodes, the compression of all files."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        saved = read(files[rank % len(files)], device, ["step", *self.parts])
        if "compression" in self.parts:
            kind, place, count = saved["compression"].get("part") or ("slice", 0, 1)
            if kind == "shard":  # the ranks of other shards have nothing of it
                files, rank, world_size = files[place::count], rank // count, world_size // count
                count = 1
            if (len(files), count) != (world_size, self.ranks_per_node):
                host = torch.device("cpu")  # all ranks' together may be too much for a GPU
                everyone = [read(file, host, ["compression"])["compression"] for file in files]
                saved["compression"] = dc.redistribute(
                    everyone, rank, world_size, self.ranks_per_node
                )
        return saved

    def _take_back(self, saved: Mapping[str, Any], file: Path) -> None:
        for key, part in self.parts.items():
            try:
                part.load_state_dict(saved[key])
            except Exception as error:
                raise RuntimeError(
                    f"{file}: {key!r} cannot be taken back. Train with the options that it was "
                    f"saved with. {type(error).__name__}: {error}"
                ) from error


def read(path: Path, device: torch.device, keys: list[str]) -> dict[str, Any]:
    """Tensors and plain values: a file cannot make us run code."""
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch does not look at checksums
        if damaged:
            raise RuntimeError(f"the checksum of {damaged} does not match")
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damaged bytes may lead to any
        raise RuntimeError(
            f"{path} cannot be read. If it is damaged, go on from the checkpoint before: write the "
            f"name of its folder into {path.parent.with_name('latest')}. "
            f"{type(error).__name__}: {error}"
        ) from error
    missing = [key for key in keys if not isinstance(saved, dict) or key not in saved]
    if missing:
        raise RuntimeError(
            f"{path} lacks {', '.join(missing)}: a training with other options saved it. Train "
            f"with those, or into another folder"
        )
    return saved


def write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, and return when it is on the disk."""
    partial = path.with_name(path.name + ".partial")
    try:
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
    except (OSError, RuntimeError) as error:  # RuntimeError is how PyTorch says that a disk is full
        free = shutil.disk_usage(path.parent).free
        partial.unlink(missing_ok=True)
        raise RuntimeError(
            f"{path} cannot be written, its disk had {free} bytes left. The checkpoints before are "
            f"whole: make room, and start again. {type(error).__name__}: {error}"
        ) from error


def together(act: Callable[[], T]) -> T:
    """Do what may fail on one rank: then all ranks raise an error, and none waits for another."""
    words, cause = "", None
    try:
        result = act()
    except Exception as error:
        words, cause = str(error) or repr(error), error
    for rank, said in enumerate(everyones(words)):
        if said:
            raise RuntimeError(f"rank {rank}: {said}") from cause
    return result


def everyones(words: str) -> list[str]:
    """What every rank has to say. (PyTorch's `all_gather_object` would ask for numpy.)"""
    mine = torch.tensor([*words.encode()[:WORDS]], dtype=torch.uint8)
    mine = torch.nn.functional.pad(mine, (0, WORDS - len(mine)))
    all_words = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_words, mine)
    return [bytes(each.tolist()).rstrip(b"\0").decode(errors="replace") for each in all_words]
