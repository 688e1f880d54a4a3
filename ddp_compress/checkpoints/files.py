"""One file of a checkpoint: written whole or not at all, read without running what is in it."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

import torch


def write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, and return when it is on the disk.

    Args:
        path: its folder exists.
        save: writes into an open file.

    Raises:
        RuntimeError: it cannot be written. What was there before is whole.
    """
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


def read(path: Path, keys: Iterable[str], in_part: bool = False) -> dict[str, Any]:
    """Tensors in the host's memory, and plain values: a file cannot make us run code.

    Args:
        path: what `write` has written, by `torch.save`.
        keys: what must be in it.
        in_part: whether tensors may stay in the file until they are looked at.

    Raises:
        RuntimeError: it is damaged, or lacks one of them.
    """
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch does not look at checksums
        if damaged:
            raise RuntimeError(f"the checksum of {damaged} does not match")
        saved: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=in_part)
    except Exception as error:  # damaged bytes may lead to any
        raise RuntimeError(
            f"{path} cannot be read. If it is damaged, go on from a checkpoint before. "
            f"{type(error).__name__}: {error}"
        ) from error
    missing = [key for key in keys if not isinstance(saved, dict) or key not in saved]
    if missing:
        raise RuntimeError(
            f"{path} lacks {', '.join(missing)}: a training with other parts saved it. Train with "
            "those, or into another folder"
        )
    return saved
