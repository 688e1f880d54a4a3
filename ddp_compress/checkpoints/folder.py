"""What all ranks carry from step to step, in a folder: a file of every rank's."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from ddp_compress.checkpoints import files
from ddp_compress.checkpoints.stateful import Stateful, on_host, plain, take_back
from ddp_compress.transport.groups import rank_and_size
from ddp_compress.transport.together import everyones, together

SAVE = "this save"  # the entry of a file that tells which others belong to it; no part is named so
NAME = re.compile(r"rank-\d+-of-\d+\.pt")


def save(folder: Path | str, /, **parts: Stateful) -> None:
    """Save parts of a training into a folder, on all ranks together: a file of every rank's.

    ``FOLDER/rank-0-of-4.pt`` and so on, each written whole or not at all. What fails on one rank
    is an error on all of them. To keep the newest of several, see `Checkpoints`.

    Args:
        folder: one that all hosts share; made where there is none. (On as many ranks, which come
            back to the same hosts, each host may have its own.) Files of other ranks or steps that
            it holds are replaced.
        parts: whatever has a ``state_dict``, by name.

    Raises:
        RuntimeError: on every rank, where one could not write. Names the file and what to do.

    Example:
        >>> import tempfile, torch, ddp_compress as dc
        >>> model = torch.nn.Linear(4, 2)
        >>> state = dc.CompressionState(model, dc.recipes.topk(density=0.5))
        >>> folder = tempfile.mkdtemp()
        >>> save(folder, model=model, compression=state)
        >>> load(folder, model=model, compression=state)
    """
    folder = Path(folder)
    rank, size = rank_and_size()
    name = everyones(uuid4().hex)[0]

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        saved = {key: plain(key, on_host(part)) for key, part in parts.items()}
        files.write(
            _file(folder, rank, size), lambda opened: torch.save({SAVE: name} | saved, opened)
        )

    def remove_others() -> None:
        for file in _files(folder) if rank == 0 else ():
            if _place(file)[1] != size:
                file.unlink()

    together(write)
    together(remove_others)


def load(folder: Path | str, /, **parts: Stateful) -> None:
    """Take back what `save` has saved, on all ranks together, whatever number of ranks saved it.

    A rank reads its own file; on another number of ranks or nodes those of all, and what a
    `CompressionState` still owes to the model is shared out among the ranks (`redistribute`). All
    else goes on from the file of rank ``r mod W``.

    Args:
        folder: see `save`.
        parts: the same names; the folder may hold more.

    Raises:
        RuntimeError: on every rank, where something on one is missing, damaged or does not fit.
            Names the file and what to do.

    Example: see `save`.
    """
    folder = Path(folder)
    rank, _ = rank_and_size()

    def open_own() -> _Everyone:
        every = _Everyone(folder, tuple(parts))
        every.own  # noqa: B018 - read, or an error
        return every

    every = together(open_own)
    names = everyones(every.own[SAVE])
    if len(set(names)) > 1:
        raise RuntimeError(
            f"the files in {folder} are of several saves: it was written while ranks died. Go on "
            "from a checkpoint before"
        )

    def take_all_back() -> None:
        for key, part in parts.items():
            try:
                take_back(part, _Part(every, key))
            except Exception as error:
                raise RuntimeError(
                    f"{every.file(rank)}: {key!r} cannot be taken back. Train with the options "
                    f"that it was saved with. {type(error).__name__}: {error}"
                ) from error

    together(take_all_back)


def is_first(folder: Path) -> bool:
    """Whether no lower rank has saved into the folder that this rank sees."""
    rank, size = rank_and_size()
    return not any(_file(folder, lower, size).exists() for lower in range(rank))


class _Everyone:
    """The files of all ranks, of which few may be read."""

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        rank, size = rank_and_size()
        found = [_place(file) for file in _files(folder)]
        if (rank, size) not in found:  # where hosts share no folder, own files are enough
            sizes = {each for _, each in found}
            size = max(sizes, default=0)
            if found != [(each, size) for each in range(size)] or not size:
                names = ", ".join(file.name for file in _files(folder)) or "no file of any rank"
                raise RuntimeError(
                    f"{folder} holds {names}, expected those of all ranks that saved: "
                    "rank-0-of-4.pt to rank-3-of-4.pt, in a folder that all hosts share"
                )
        self.size = size
        self._folder = folder
        self._keys = (SAVE, *keys)
        self._found: dict[int, dict[str, Any]] = {}

    def file(self, rank: int) -> Path:
        return _file(self._folder, rank % self.size, self.size)

    @property
    def own(self) -> Mapping[str, Any]:
        return self.read(rank_and_size()[0] % self.size)

    def read(self, rank: int) -> dict[str, Any]:
        if rank not in self._found:
            mine = rank == rank_and_size()[0]
            self._found[rank] = files.read(self.file(rank), self._keys, in_part=not mine)
        return self._found[rank]


class _Part(Sequence[Any]):
    """One part, as every rank has saved it."""

    def __init__(self, every: _Everyone, key: str) -> None:
        self._every = every
        self._key = key

    def __len__(self) -> int:
        return self._every.size

    def __getitem__(self, rank: Any) -> Any:
        if not 0 <= rank < len(self):
            raise IndexError(rank)
        saved = self._every.read(rank)
        if saved[SAVE] != self._every.own[SAVE]:
            raise RuntimeError(f"{self._every.file(rank)} is of another save than the others")
        return saved[self._key]


def _file(folder: Path, rank: int, size: int) -> Path:
    return folder / f"rank-{rank}-of-{size}.pt"


def _files(folder: Path) -> list[Path]:
    """In the order of ranks; others' files are none of ours."""
    return sorted(
        (file for file in folder.glob("rank-*-of-*.pt") if NAME.fullmatch(file.name)), key=_place
    )


def _place(file: Path) -> tuple[int, int]:
    """Rank and number of ranks, by the name of a file."""
    rank, size = re.findall(r"\d+", file.name)
    return int(rank), int(size)
