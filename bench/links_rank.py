"""What one rank of `links.py` runs, in a process of its own: every method in turn, step by step."""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import ddp_compress as dc
from gradients import FixedGradients, heavy_tailed
from links_figures import Count, Sample, summarize
from links_levels import Levels, dense_hook
from links_methods import DENSE_WITHIN, NO_EXCHANGE, Method
from links_peer import Peer
from netlab import INTERFACE
from networks import RESNET18_NUMEL, RESNET18_SHAPES

GRADIENT_SETS = 3
WARM_UP_STEPS = 3  # DDP rebuilds its buckets after the first step
DENSE_BYTES = 4 * RESNET18_NUMEL


@dataclass(frozen=True)
class Job:
    """What every rank is told."""

    methods: list[Method]
    ranks_per_host: int
    steps: int
    backward: float  # seconds
    limit: int  # seconds
    driver: int  # process id

    @property
    def lines(self) -> int:
        """Of progress."""
        return len(self.methods) * (WARM_UP_STEPS + self.steps)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        told = json.loads(text)
        methods = [
            Method(each["name"], tuple((n, v) for n, v in each["options"]))
            for each in told["methods"]
        ]
        return cls(**told | {"methods": methods})


class Runner:
    """A DDP model that exchanges its gradients by one method."""

    def __init__(
        self, method: Method, values: Sequence[Tensor], backward: float, levels: Levels
    ) -> None:
        self.method = method
        self.levels = levels
        self.steps = 0
        peer = method.peer()
        self.model = DistributedDataParallel(
            FixedGradients(values, backward),
            init_sync=False,
            bucket_cap_mb=DENSE_BYTES // 2**20 + 1 if peer and peer.one_bucket else None,
        )
        self.stats = self._register(peer)

    def _register(self, peer: Peer | None) -> dc.Stats | None:
        """Register the method's hook; statistics of its own if it keeps any."""
        if peer:
            self.model.register_comm_hook(None, lambda _, bucket: peer.hook(bucket))
            return peer.stats
        if self.method == NO_EXCHANGE:
            self.model.register_comm_hook(None, hand_back)
        elif self.method == DENSE_WITHIN:
            self.model.register_comm_hook(self.levels, dense_hook)
        elif self.method.is_recipe:
            return dc.attach(self.model, self.method.recipe(), **self.method.of_attach).stats
        return None

    def step(self, gradients: Sequence[Tensor]) -> float:
        """Seconds of a forward and a backward pass."""
        self.steps += 1
        begin = time.perf_counter()
        self.model(gradients).backward()
        seconds = time.perf_counter() - begin
        self.model.zero_grad(set_to_none=True)
        return seconds

    def local_step(self, gradients: Sequence[Tensor]) -> float:
        """The same with nothing exchanged."""
        with self.model.no_sync():
            seconds = self.step(gradients)
        self.steps -= 1
        return seconds

    def sample(self, gradients: Sequence[Tensor]) -> Sample:
        """Measure one step of all ranks, started together."""
        dist.barrier()
        local_s = self.local_step(gradients)
        dist.barrier()
        before = self.count()
        dist.barrier(self.levels.inside)  # nobody sends before the host's other ranks have counted
        cpu_s = time.process_time()
        step_s = self.step(gradients)
        cpu_s = time.process_time() - cpu_s
        dist.barrier()  # what others still send or forward is counted too
        return Sample(local_s, step_s, cpu_s, self.count() - before)

    def count(self) -> Count:
        counted = self._computed() if self.stats is None else of_stats(self.stats)
        sent, received = interface_bytes("tx"), interface_bytes("rx")
        return Count(**counted, interface_sent=sent, interface_received=received)

    def _computed(self) -> dict[str, float]:
        """What all-reduces come to."""
        if self.method == NO_EXCHANGE:
            return {}
        whole, collectives = self.steps * DENSE_BYTES, self.steps * self._buckets()
        if self.method == DENSE_WITHIN:
            local = self.levels.ranks_per_host
            sent, inside = ring(whole / local, self.levels.hosts), ring(whole, local)
            return {
                "entries": whole / local / 4,
                "payload": whole / local,
                "sent": sent,
                "received": sent,
                "collectives": collectives,
                "inside_sent": inside,
                "inside_received": inside,
                "inside_collectives": 2 * collectives,
            }
        sent = ring(whole, dist.get_world_size())
        return {
            "entries": whole / 4,
            "payload": whole,
            "sent": sent,
            "received": sent,
            "collectives": collectives,
        }

    def _buckets(self) -> int:
        sizes = self.model._get_ddp_logging_data().get("rebuilt_bucket_sizes", "")
        return len(str(sizes).split(","))


def of_stats(stats: dc.Stats) -> dict[str, float]:
    """What a recipe has counted, or a peer's method."""
    inside = stats.within
    return {
        "entries": stats.nonzeros,
        "payload": stats.payload_bits / 8,
        "sent": stats.sent_bytes,
        "received": stats.received_bytes,
        "collectives": stats.collectives,
        "inside_sent": inside.sent_bytes,
        "inside_received": inside.received_bytes,
        "inside_collectives": inside.collectives,
    }


def ring(payload: float, ranks: int) -> float:
    """Bytes that an all-reduce of a ring, or a reduce-scatter and an all-gather, send."""
    return payload * 2 * (ranks - 1) / ranks


def hand_back(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A DDP hook that exchanges nothing."""
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def interface_bytes(direction: str) -> int:
    """Bytes that this host's interface has sent ("tx") or received ("rx")."""
    return int(Path(f"/sys/class/net/{INTERFACE}/statistics/{direction}_bytes").read_text())


def quiet_bytes() -> dict[str, int]:
    """What the interface sends without any exchange: in one barrier, and in one silent second."""
    dist.barrier()
    time.sleep(0.2)
    start = interface_bytes("tx")
    dist.barrier()
    time.sleep(0.2)
    after_barrier = interface_bytes("tx")
    time.sleep(1)
    silent = interface_bytes("tx")
    return {"barrier_bytes": after_barrier - start, "silent_second_bytes": silent - after_barrier}


def measure(job: Job) -> tuple[list[list[Sample]], dict[str, int]]:
    """The samples of every method, and what the quiet network sends."""
    rank = dist.get_rank()
    gradients = [heavy_tailed(rank, number) for number in range(GRADIENT_SETS)]
    values = [torch.zeros(shape) for shape in RESNET18_SHAPES.values()]
    levels = Levels(job.ranks_per_host)
    runners = [Runner(method, values, job.backward, levels) for method in job.methods]
    for number in range(WARM_UP_STEPS):
        for runner in runners:
            runner.step(gradients[number % GRADIENT_SETS])
            report_progress(rank)
    quiet = quiet_bytes()
    samples: list[list[Sample]] = [[] for _ in runners]
    for number in range(job.steps):
        for runner, taken in zip(runners, samples, strict=True):
            taken.append(runner.sample(gradients[number % GRADIENT_SETS]))
            report_progress(rank)
    return samples, quiet


def report_progress(rank: int) -> None:
    if rank == 0:
        print("step", flush=True)


def die_with(driver: int, limit: int) -> None:
    """End this process with the driver that started it, and after `limit` seconds at the latest."""
    parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    if os.getppid() != driver:
        raise SystemExit("the driver has ended")
    signal.alarm(limit)


def main(job: Job) -> None:
    """Measure; rank 0 prints the figures of all ranks as its last line."""
    die_with(job.driver, job.limit)
    dist.init_process_group("gloo", timeout=timedelta(seconds=job.limit))
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(measure(job), gathered)
    if gathered is not None:
        print(json.dumps(summarize(job.methods, gathered)), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Job.from_json(sys.argv[1]))
