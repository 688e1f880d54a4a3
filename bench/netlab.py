"""Several hosts on one machine: network namespaces, joined by shaped veth pairs to a bridge.

    host0: eth0 ──── port0 ┐
    host1: eth0 ──── port1 ├ bridge, in a namespace of its own
    host2: eth0 ──── port2 ┘

Both ends of each veth pair carry a token bucket (`tc … tbf`), so a host sends and receives at the
given rate; its own processes reach one another past it. To them the host bears the name in the
picture. Every interface is born inside a namespace of ours: the machine's network is never touched.
Namespaces carry the process id and start time of the run that made them, so that the next
run can recognize and remove what a killed one left behind.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

INTERFACE = "eth0"
PREFIX = "netlab-"
SMALLEST_BURST = 3200  # two full Ethernet frames
LARGEST_OFFLOAD = 65536
QUEUE = "50ms"
NAMED = 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"'
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LabError(RuntimeError):
    """The machine cannot host the lab; the message says what is missing."""


@dataclass(frozen=True)
class Lab:
    """Running hosts. Made by `lab`."""

    tag: str
    hosts: int

    @property
    def switch(self) -> str:
        return f"{self.tag}-switch"

    def namespace(self, host: int) -> str:
        return f"{self.tag}-host{host}"

    @staticmethod
    def address(host: int) -> str:
        return f"10.0.{host // 250}.{host % 250 + 1}"

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """`command`, to be run on `host`."""
        here = [which("ip") or "ip", "netns", "exec", self.namespace(host)]
        return [*here, "unshare", "--uts", "sh", "-c", NAMED, f"host{host}", *command]

    def shape(self, bits_per_second: int) -> None:
        """Limit every link, in both directions, to the given rate."""
        for host in range(self.hosts):
            _shape(self.namespace(host), INTERFACE, bits_per_second)
            _shape(self.switch, f"port{host}", bits_per_second)

    def link(self, host: int, state: Literal["up", "down"]) -> None:
        """Plug a host's cable in, or pull it."""
        _run("ip", "-n", self.switch, "link", "set", f"port{host}", state)


def burst_bytes(bits_per_second: int) -> int:
    """Bytes that may pass at once: what the link carries in half a millisecond.

    The burst passes unshaped, so it must stay small beside the messages that are timed: with the
    customary 64 KiB, a 50 kB message at 100 Mbit/s would take 0.3 ms where a real link takes 4 ms.
    """
    return max(SMALLEST_BURST, bits_per_second // 8 // 2000)


@contextmanager
def lab(hosts: int) -> Iterator[Lab]:
    """`hosts` hosts that reach one another and nothing else; gone when the block ends.

    Raises:
        LabError: without root, `ip` or `tc`, or when the kernel refuses.
    """
    _require_tools()
    _remove_stale()
    made = Lab(f"{PREFIX}{os.getpid()}-{_start_time(os.getpid())}", hosts)
    try:
        _build(made)
        yield made
    finally:
        ignore_signals()
        _remove(made.tag)


def exit_on_signals() -> None:
    """Turn Ctrl-C, SIGTERM and SIGHUP into one SystemExit, so that `finally` blocks run once."""

    def leave(number: int, frame: object) -> None:
        ignore_signals()
        raise SystemExit(128 + number)

    for each in STOP_SIGNALS:
        signal.signal(each, leave)


def ignore_signals() -> None:
    """Let cleaning up finish undisturbed."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _require_tools() -> None:
    missing = [f"`{tool}` (Debian package iproute2)" for tool in ("ip", "tc") if not which(tool)]
    if os.geteuid() != 0:
        missing.append("root (network namespaces need it)")
    if missing:
        raise LabError(f"missing: {', '.join(missing)}")


def which(tool: str) -> str | None:
    """Where `tool` is, also when the sbin directories are not on PATH."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _run(tool: str, *arguments: str) -> str:
    command = [which(tool) or tool, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    if done.returncode:
        raise LabError(f"`{tool} {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def _build(lab: Lab) -> None:
    _run("ip", "netns", "add", lab.switch)
    _run("ip", "-n", lab.switch, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
    _up(lab.switch, "bridge")
    for host in range(lab.hosts):
        inside, port = lab.namespace(host), f"port{host}"
        _run("ip", "netns", "add", inside)
        veth = ("type", "veth", "peer", "name", INTERFACE, "netns", inside)
        _run("ip", "-n", lab.switch, "link", "add", port, *veth)
        _run("ip", "-n", lab.switch, "link", "set", port, "master", "bridge")
        _run("ip", "-n", inside, "addr", "add", f"{lab.address(host)}/16", "dev", INTERFACE)
        _up(inside, "lo")
        _up(inside, INTERFACE)
        _up(lab.switch, port)


def _up(namespace: str, device: str) -> None:
    """Bring `device` up without IPv6 addresses, whose discovery would add bytes of its own."""
    _run("ip", "-n", namespace, "link", "set", device, "addrgenmode", "none", "up")


def _shape(namespace: str, device: str, rate: int) -> None:
    """Set the token bucket. Offloaded packets must fit it: cutting them up is slow."""
    burst = burst_bytes(rate)
    largest = min(burst // 2, LARGEST_OFFLOAD)
    _run("ip", "-n", namespace, "link", "set", device, "gso_max_size", str(largest))
    bucket = ("rate", f"{rate}bit", "burst", str(burst), "latency", QUEUE)
    _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", *bucket)


def _namespaces() -> list[str]:
    lines = _run("ip", "netns", "list").splitlines()
    return [line.split()[0] for line in lines if line.startswith(PREFIX)]


def _remove(tag: str) -> None:
    """Kill what runs in the namespaces of `tag` and delete them; veths and bridge go with them."""
    for namespace in _namespaces():
        if namespace.startswith(f"{tag}-"):
            for pid in _run("ip", "netns", "pids", namespace).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run("ip", "netns", "delete", namespace)


def _remove_stale() -> None:
    """Remove the namespaces of runs that are no longer alive."""
    for tag in {namespace.rsplit("-", 1)[0] for namespace in _namespaces()}:
        pid, start = tag.removeprefix(PREFIX).split("-")
        if _start_time(int(pid)) != start:
            _remove(tag)


def _start_time(pid: int) -> str | None:
    """When `pid` started, in clock ticks since boot; None if it is not running."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
