"""Run a function on several ranks of one machine."""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes
from tqdm import tqdm

from ddp_compress.advise.echoes import echoed

T = TypeVar("T")


def on_ranks(count: int, work: Callable[..., T], *arguments: Any, echoes: int = 1) -> list[T]:
    """Call a function in as many processes, of one thread each, that share a Gloo group.

    Processes are forked: arguments may be anything, and nothing is imported again.

    Args:
        count: how many ranks.
        work: what every rank calls; results must be picklable.
        arguments: of the call, the same for all.
        echoes: how many ranks of the group each process stands for.

    Returns:
        What each rank gave, in rank order.
    """
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread: a lock that it holds would stay held in the processes
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        everything = (count, folder, work, arguments, echoes)
        start_processes(as_rank, everything, count, start_method="fork")
        return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(count)]


def as_rank(
    rank: int, count: int, folder: Path, work: Callable[..., Any], arguments: Any, echoes: int
) -> None:
    where, backend = f"file://{folder}/store", "gloo" if echoes == 1 else echoed(count)
    dist.init_process_group(backend, init_method=where, rank=rank, world_size=count * echoes)
    (folder / str(rank)).write_bytes(pickle.dumps(work(*arguments)))
    dist.barrier()
    dist.destroy_process_group()
