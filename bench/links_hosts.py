"""Ranks of `links.py` and `race.py` on the hosts of a lab: started, followed, ended."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from netlab import INTERFACE, Lab


class RankError(RuntimeError):
    """A rank failed or took too long; the message says which and how."""


class Job(Protocol):
    """What every rank is told."""

    @property
    def ranks_per_host(self) -> int: ...

    @property
    def limit(self) -> int:
        """Seconds that it may take."""

    @property
    def lines(self) -> int:
        """That rank 0 writes on its way, one a step."""

    def to_json(self) -> str: ...


def run_ranks(lab: Lab, script: str, job: Job) -> dict[str, Any]:
    """Run the job on all hosts, and return the summary that rank 0 prints.

    Args:
        lab: the hosts.
        script: that every rank runs, with the job as its argument.
        job: what it is to do.

    Raises:
        RankError: when a rank fails or the job's time is over.
    """
    command = [script, job.to_json()]
    said = run_command(lab, job.ranks_per_host, command, job.limit, job.lines)
    summary: dict[str, Any] = json.loads(said.splitlines()[-1])
    return summary


def run_command(
    lab: Lab, ranks_per_host: int, command: Sequence[str], limit: int, lines: int
) -> str:
    """Run Python with a command on all hosts, and return what rank 0 has printed.

    Args:
        lab: the hosts.
        ranks_per_host: started on each.
        command: the same for every rank.
        limit: seconds that it may take.
        lines: that rank 0 prints on its way.

    Raises:
        RankError: when a rank fails or the time is over.
    """
    with tempfile.TemporaryDirectory(prefix="links-") as folder:
        ranks = range(lab.hosts * ranks_per_host)
        outputs = [Path(folder, f"rank{rank}.out") for rank in ranks]
        errors = [Path(folder, f"rank{rank}.err") for rank in ranks]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, (out, err) in enumerate(zip(outputs, errors, strict=True)):
                processes.append(start_rank(lab, rank, ranks_per_host, command, out, err))
            wait(processes, errors, outputs[0], limit, lines)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return outputs[0].read_text()


def start_rank(
    lab: Lab, rank: int, ranks_per_host: int, command: Sequence[str], out: Path, err: Path
) -> "subprocess.Popen[bytes]":
    """Python with a command, as torchrun would start it; ranks of one host are neighbours."""
    host, local_rank = divmod(rank, ranks_per_host)
    environment = os.environ | {
        "RANK": str(rank),
        "WORLD_SIZE": str(lab.hosts * ranks_per_host),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(ranks_per_host),
        "GROUP_RANK": str(host),
        "GROUP_WORLD_SIZE": str(lab.hosts),
        "MASTER_ADDR": lab.address(0),
        "MASTER_PORT": "29500",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
    }
    there = lab.command(host, [sys.executable, *command])
    with out.open("wb") as stdout, err.open("wb") as stderr:
        return subprocess.Popen(
            there,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


def wait(
    processes: Sequence["subprocess.Popen[bytes]"],
    errors: Sequence[Path],
    log: Path,
    limit: int,
    lines: int,
) -> None:
    """Follow the ranks until all have ended well; rank 0 writes a line into its log every step."""
    deadline = time.monotonic() + limit
    with tqdm(total=lines, unit="step", disable=None) as bar:
        while any(process.poll() is None for process in processes):
            bar.update(min(log.read_bytes().count(b"\n"), lines) - bar.n)
            if any(process.poll() for process in processes):
                break
            if time.monotonic() > deadline:
                raise RankError(f"not done after {limit} s (--limit): killed")
            time.sleep(0.1)
    failed = [rank for rank, process in enumerate(processes) if process.poll()]
    if failed:
        raise RankError("\n".join(failure(rank, processes, errors) for rank in failed))


def failure(
    rank: int, processes: Sequence["subprocess.Popen[bytes]"], errors: Sequence[Path]
) -> str:
    last_lines = errors[rank].read_text(errors="replace").splitlines()[-12:]
    return "\n  ".join([f"rank {rank} ended with {processes[rank].returncode}:", *last_lines])
