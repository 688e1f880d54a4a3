"""What all ranks of a job do together: an error on one is an error on all, and nobody waits."""

from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.stats import Traffic
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.groups import rank_and_size

T = TypeVar("T")
PIECE = 1 << 26  # bytes that travel at a time


def together(act: Callable[[], T]) -> T:
    """Do what may fail on one rank: then all ranks raise an error, and none waits for another.

    Args:
        act: done on every rank; it may not wait for other ranks.

    Returns:
        What it gave on this rank.

    Raises:
        RuntimeError: on every rank, where it failed on one. Names the first of those.

    Example:
        >>> together(lambda: 3)
        3
    """
    words, cause = "", None
    try:
        result = act()
    except Exception as error:
        words, cause = str(error) or repr(error), error
    for rank, said in enumerate(everyones(words)):
        if said:
            raise RuntimeError(f"rank {rank}: {said}") from cause
    return result


def everyones(text: str) -> list[str]:
    """What every rank has to say, in rank order.

    Example:
        >>> everyones("here")
        ['here']
    """
    if not dist.is_initialized():
        return [text]
    return _job().share_text(text)


def on_any(holds: bool) -> bool:
    """Whether something holds on any rank: they go on alike.

    Example:
        >>> on_any(False)
        False
    """
    return "yes" in everyones("yes" if holds else "no")


def on_all(holds: bool) -> bool:
    """Whether something holds on all ranks: they go on alike.

    Example:
        >>> on_all(True)
        True
    """
    return not on_any(not holds)


def gather(mine: Any) -> list[Any]:
    """On rank 0 what every rank gives, in rank order, in the host's memory; on others nothing.

    Args:
        mine: tensors and plain values, in dicts and lists.

    Raises:
        RuntimeError: on every rank, where one has failed to write what it gives.

    Example:
        >>> gather({"step": 3})
        [{'step': 3}]
    """
    written = together(lambda: _written(mine))
    sizes = list(map(int, everyones(str(len(written)))))
    rank, _ = rank_and_size()
    if rank:
        for piece in written.split(PIECE):
            dist.send(piece.to(_job().place), 0)
        return []
    others = [_received(size, source) for source, size in enumerate(sizes) if source]
    return [_read(each) for each in (written, *others)]


def _received(size: int, source: int) -> Tensor:
    whole = host.zeros(size, dtype=torch.uint8)
    for piece in whole.split(PIECE):
        came = piece.to(_job().place)
        dist.recv(came, source)
        piece.copy_(came)
    return whole


def _written(value: Any) -> Tensor:
    file = BytesIO()
    torch.save(value, file)
    return host.from_bytes(file.getvalue())


def _read(written: Tensor) -> Any:
    return torch.load(BytesIO(host.to_bytes(written)), map_location="cpu", weights_only=True)


def _job() -> Comm:
    """All ranks."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Comm(None, Traffic(), device)
