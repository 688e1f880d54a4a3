"""torchrun on each of several hosts: started, watched, struck, ended.

A host is a process of this machine or, in a lab (see `netlab.py`), a network namespace with a name
of its own: host0, host1 … Linux: ranks are found in /proc.
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from netlab import Lab

PORT = 29400
LAST_WORDS = 8192  # bytes
PROGRESS = re.compile(rb"(\d+)/\d+ \[")  # tqdm's
# Else ranks that start again may find the addresses of dead ones (pytorch/pytorch#135712).
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
KNOWING = 'mount --bind "$0" /etc/hosts && exec "$@"'


class Agents:
    """One job: a torchrun a host, and what they say, the progress bar of rank 0 among it.

    Args:
        hosts: how many torchruns.
        lab: where they run; None for this machine.
        options: of torchrun on every host, beside those that let hosts meet.
        script: with its arguments.
        folder: for the hosts' table of names.
    """

    def __init__(
        self,
        hosts: int,
        lab: Lab | None,
        options: Sequence[str],
        script: Sequence[str],
        folder: Path,
    ) -> None:
        self.lab = lab
        self.lost: set[int] = set()
        self.said = b""
        names = folder / "hosts"
        if lab:
            lines = ["127.0.0.1 localhost", *(f"{lab.address(h)} host{h}" for h in range(hosts))]
            names.write_text("\n".join(lines) + "\n")
        endpoint = f"host0:{PORT}" if lab else f"localhost:{free_port()}"
        self.pipe, shared = os.pipe()
        self.processes: list[subprocess.Popen[bytes]] = []
        for host in range(hosts):
            meet = [f"--rdzv-endpoint={endpoint}"]
            if not lab:  # every torchrun takes localhost for itself
                meet.append(f"--rdzv-conf=is_host={int(host == 0)}")
            command = [sys.executable, "-m", "torch.distributed.run", *meet, *options, *script]
            self.processes.append(
                subprocess.Popen(
                    knowing(lab, host, names, command) if lab else command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=shared,
                    env=os.environ | OWN_STORE | {"OMP_NUM_THREADS": "1"},
                )
            )
        os.close(shared)

    def steps(self, deadline: float) -> Iterator[int]:
        """The steps on the progress bar, as they come, until every host that is left has ended.

        Raises:
            TimeoutError: that was not before the deadline.
        """
        rest = b""
        while None in self.codes():
            if time.monotonic() > deadline:
                raise TimeoutError
            if not select.select([self.pipe], [], [], 0.5)[0]:
                continue
            came = os.read(self.pipe, 65536)
            self.said = (self.said + came)[-LAST_WORDS:]
            rest += came
            found = list(PROGRESS.finditer(rest))
            rest = rest[found[-1].end() if found else 0 :][-100:]
            yield from (int(each[1]) for each in found)

    def codes(self) -> list[int | None]:
        """Exit codes of the hosts that are left; None where one is still at work."""
        return [each.poll() for host, each in enumerate(self.processes) if host not in self.lost]

    def kill_rank(self, rank: int) -> None:
        """SIGKILL to one rank."""
        pids = {r: pid for each in self.processes for r, pid in workers(each.pid).items()}
        os.kill(pids[rank], signal.SIGKILL)

    def kill_host(self, host: int) -> None:
        """SIGKILL to a torchrun and all its ranks."""
        self.lost.add(host)
        agent = self.processes[host].pid
        for pid in (agent, *workers(agent).values()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut_off(self, host: int) -> None:
        """Pull a host's cable: no connection is closed, nothing comes any more."""
        assert self.lab
        self.lost.add(host)
        self.lab.link(host, "down")

    def end(self) -> None:
        """Leave no process behind, and every cable plugged in."""
        for host, process in enumerate(self.processes):
            if process.poll() is None:
                self.kill_host(host)
            process.wait()
            if self.lab:
                self.lab.link(host, "up")
        os.close(self.pipe)


def knowing(lab: Lab, host: int, names: Path, command: Sequence[str]) -> list[str]:
    """`command` on a host that knows the others by name."""
    return lab.command(host, ["sh", "-c", KNOWING, str(names), *command])


def workers(agent: int) -> dict[int, int]:
    """The processes that a torchrun has started, by rank."""
    pids = {}
    with suppress(FileNotFoundError, ProcessLookupError):  # it may have ended meanwhile
        for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
            rank = re.search(rb"\0RANK=(\d+)\0", b"\0" + Path(f"/proc/{pid}/environ").read_bytes())
            if rank:
                pids[int(rank[1])] = int(pid)
    return pids


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port
