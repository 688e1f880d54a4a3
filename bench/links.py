"""What a gradient exchange costs over slow links: dense, fp16 and every recipe, in one run.

    sudo python bench/links.py --rate 1gbit 100mbit --density 0.001 --json links.json
    sudo python bench/links.py --recipes majority_vote,density=0.01,value_bits=4 sbc,codec=golomb
    sudo python bench/links.py --recipes rotated,keep=0.5,down=rotated,bits=5

Each rank runs on a host of its own (see `netlab.py`) behind a link of the given rate. Every method
sends the gradients of one model with ResNet-18's parameter shapes (11.2 M parameters, 44.7 MB). The
model is nearly free: its loss is the sum of <p, g> with fixed tensors g, so that the gradient of p
is g. Methods take turns, step by step, and each figure is a median over the steps:

* step: forward and backward through DDP, on the slowest rank, from a common start.
* above no_sync: step less the same step under `no_sync`: exchange, and DDP's own bucket copies.
* exchange: step less the step of "no exchange", a hook that hands the bucket back as it is: what
  compression, communication and decompression add to DDP, computation on shared cores included.
* payload, sent, received, collectives: what `state.stats` says, per rank and step. For dense, fp16
  and "no exchange" they are computed: a ring all-reduce sends 2(W-1)/W of its bytes.
* interface: what the rank's network interface counted meanwhile, TCP acknowledgements and packet
  headers included. (At high rates TCP leaves cutting packets into frames to the interface, which
  counts one header for them all: up to 5 % of a real wire's bytes are then not counted.)
"""

import argparse
import ast
import ctypes
import inspect
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from netlab import INTERFACE, Lab, LabError, burst_bytes, exit_on_signals, lab

RECIPES = (
    "fp16",
    "topk",
    "dgc",
    "sbc",
    "sbc,codec=golomb",
    "majority_vote",
    "hgc",
    "stc",
    "sign",
)
GRADIENT_SETS = 3
WARM_UP_STEPS = 3  # DDP rebuilds its buckets after the first step
BYTE_COLUMNS = ("payload", "sent", "received", "interface_sent", "interface_received")
UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}


@dataclass(frozen=True)
class Method:
    """One way of exchanging gradients: "dense", "fp16", "no exchange" or a recipe's name."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()  # what a recipe is called with

    @property
    def label(self) -> str:
        """The name, the options and the density."""
        words = dict(self.options)
        density = words.pop("density", "")
        return " ".join([self.name, *(f"{n}={v}" for n, v in words.items()), str(density)]).strip()

    @property
    def is_recipe(self) -> bool:
        return self.name not in (DENSE.name, NO_EXCHANGE.name, FP16.name)


DENSE = Method("dense")
NO_EXCHANGE = Method("no exchange")
FP16 = Method("fp16")


@dataclass(frozen=True)
class Job:
    """What every rank is told."""

    methods: list[Method]
    steps: int
    limit: int
    driver: int  # process id

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


# ------------------------------------------------------------------------------------ the model


def resnet18_shapes(classes: int = 10) -> list[tuple[int, ...]]:
    """Parameter shapes of ResNet-18 for CIFAR (3×3 stem), in the order of `parameters()`."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3), (64,), (64,)]
    before = 64
    for width in (64, 128, 256, 512):
        norm = [(width,), (width,)]
        shapes += [(width, before, 3, 3), *norm, (width, width, 3, 3), *norm]
        if before != width:
            shapes += [(width, before, 1, 1), *norm]
        shapes += [(width, width, 3, 3), *norm] * 2
        before = width
    return [*shapes, (classes, 512), (classes,)]


PARAMETERS = sum(torch.Size(shape).numel() for shape in resnet18_shapes())
DENSE_BYTES = 4 * PARAMETERS


class FixedGradients(nn.Module):
    """Parameters whose gradients are the tensors given to `forward`."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(value) for value in values])

    def forward(self, gradients: Sequence[Tensor]) -> Tensor:
        pairs = zip(self.values, gradients, strict=True)
        return torch.stack([torch.dot(p.view(-1), g.view(-1)) for p, g in pairs]).sum()


def make_gradients(rank: int, number: int) -> list[Tensor]:
    """Heavy-tailed gradients: a scale for each tensor and a signal shared by ranks, and noise."""
    common = torch.Generator().manual_seed(number)
    own = torch.Generator().manual_seed(1000 * (rank + 1) + number)

    def gradient(shape: tuple[int, ...]) -> Tensor:
        scale = 10 ** (-3 + 2 * torch.rand((), generator=common))
        signal_part = torch.randn(shape, generator=common)
        noise = torch.randn(shape, generator=own)
        tail = torch.randn(shape, generator=own).mul_(0.7).exp_()
        return signal_part.add_(noise).mul_(tail).mul_(scale)

    return [gradient(shape) for shape in resnet18_shapes()]


# ------------------------------------------------------------------------------- what a rank runs


@dataclass(frozen=True)
class Count:
    """Running totals of one rank."""

    payload: float = 0
    sent: float = 0
    received: float = 0
    collectives: float = 0
    interface_sent: float = 0
    interface_received: float = 0

    def __sub__(self, other: "Count") -> "Count":
        return Count(*(a - b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> list[float]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class Sample:
    """One step of one method on one rank."""

    local_s: float
    step_s: float
    count: Count


class Runner:
    """A DDP model that exchanges its gradients by one method."""

    def __init__(self, method: Method, values: Sequence[Tensor]) -> None:
        self.method = method
        self.steps = 0
        self.model = DistributedDataParallel(FixedGradients(values), init_sync=False)
        self.stats = self._register()

    def _register(self) -> Any:
        """Register the method's hook; statistics of its own if it keeps any."""
        if self.method == FP16:
            self.model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif self.method == NO_EXCHANGE:
            self.model.register_comm_hook(None, hand_back)
        elif self.method.is_recipe:
            import ddp_compress as dc

            return dc.attach(self.model, make(self.method.name, dict(self.method.options))).stats
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
        step_s = self.step(gradients)
        dist.barrier()  # what others still send or forward is counted too
        return Sample(local_s, step_s, self.count() - before)

    def count(self) -> Count:
        return Count(*self._wire_count(), interface_bytes("tx"), interface_bytes("rx"))

    def _wire_count(self) -> tuple[float, float, float, float]:
        stats = self.stats
        if stats is not None:
            bits, sent, received = stats.payload_bits, stats.sent_bytes, stats.received_bytes
            return bits / 8, sent, received, stats.collectives
        if self.method == NO_EXCHANGE:
            return 0, 0, 0, 0
        payload = self.steps * DENSE_BYTES / (2 if self.method == FP16 else 1)
        ring = payload * 2 * (dist.get_world_size() - 1) / dist.get_world_size()
        return payload, ring, ring, self.steps * self._buckets()

    def _buckets(self) -> int:
        sizes = self.model._get_ddp_logging_data().get("rebuilt_bucket_sizes", "")
        return len(str(sizes).split(","))


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


def rank_main(job: Job) -> None:
    """One rank: measure every method, then let rank 0 print the summary as its last line."""
    die_with(job.driver, job.limit)
    dist.init_process_group("gloo", timeout=timedelta(seconds=job.limit))
    rank, world = dist.get_rank(), dist.get_world_size()
    gradients = [make_gradients(rank, number) for number in range(GRADIENT_SETS)]
    values = [torch.zeros(shape) for shape in resnet18_shapes()]
    runners = [Runner(method, values) for method in job.methods]
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
    gathered: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object((samples, quiet), gathered)
    if gathered is not None:
        print(json.dumps(summarize(job.methods, gathered)), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def die_with(driver: int, limit: int) -> None:
    """End this process with the driver that started it, and after `limit` seconds at the latest."""
    parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    if os.getppid() != driver:
        raise SystemExit("the driver has ended")
    signal.alarm(limit)


def report_progress(rank: int) -> None:
    if rank == 0:
        print("step", flush=True)


# ------------------------------------------------------------------------------------ the figures


def summarize(methods: Sequence[Method], gathered: Sequence[Any]) -> dict[str, Any]:
    """Figures of every method from the samples of all ranks: medians over steps."""
    rounds = {
        method: list(zip(*(samples[index] for samples, _ in gathered), strict=True))
        for index, method in enumerate(methods)
    }
    free = [slowest(ranks, "step_s") for ranks in rounds[NO_EXCHANGE]]
    rows = [summarize_method(method, taken, free) for method, taken in rounds.items()]
    quiet = {name: max(quiet[name] for _, quiet in gathered) for name in gathered[0][1]}
    return {"quiet": quiet, "rows": rows}


def summarize_method(
    method: Method, rounds: Sequence[Sequence[Sample]], free: Sequence[float]
) -> dict[str, Any]:
    """Times of the slowest rank, bytes of the mean rank; `free` are steps without an exchange."""
    step = [slowest(ranks, "step_s") for ranks in rounds]
    local = [slowest(ranks, "local_s") for ranks in rounds]
    counts = [sample.count for ranks in rounds for sample in ranks]
    names = [field.name for field in fields(Count)]
    return {
        "method": method.label,
        "step_s": statistics.median(step),
        "local_s": statistics.median(local),
        "above_no_sync_s": statistics.median(a - b for a, b in zip(step, local, strict=True)),
        "exchange_s": statistics.median(a - b for a, b in zip(step, free, strict=True)),
        "all_step_s": step,
        **{name: statistics.mean(getattr(count, name) for count in counts) for name in names},
    }


def slowest(ranks: Sequence[Sample], name: str) -> float:
    return float(max(getattr(sample, name) for sample in ranks))


def render(rate: str, ranks: int, result: dict[str, Any]) -> Table:
    """The table of one rate. Bracketed: how many times less than dense."""
    rows, quiet = result["rows"], result["quiet"]
    local_s = statistics.median(row["local_s"] for row in rows)
    table = Table(
        title=f"{PARAMETERS / 1e6:.1f} M parameters over {ranks} hosts at {rate}/s",
        caption=f"kB per rank and step; (×): dense / this; the step under no_sync takes "
        f"{1e3 * local_s:.0f} ms; with nothing to exchange an interface "
        f"sends {quiet['barrier_bytes']} B a step (a barrier) and "
        f"{quiet['silent_second_bytes']} B a second; load average before the run: "
        f"{result['load_before']:.1f} on {os.cpu_count()} cores",
    )
    table.add_column("", no_wrap=True)
    for heading in ("step\nms", "above no_sync\nms", "exchange\nms", "payload", "sent", "received"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("interface\nsent", "interface\nreceived", "collec-\ntives"):
        table.add_column(heading, justify="right", no_wrap=True)
    dense = next(row for row in rows if row["method"] == DENSE.label)
    for row in rows:
        table.add_row(
            row["method"],
            f"{1e3 * row['step_s']:.1f}",
            *(beside(row[name], dense[name]) for name in ("above_no_sync_s", "exchange_s")),
            *(f"{row[name] / 1e3:,.1f}" for name in BYTE_COLUMNS),
            f"{row['collectives']:.1f}",
        )
    return table


def beside(seconds: float, dense_seconds: float) -> str:
    """Milliseconds, and how many times less than dense."""
    times = f"{dense_seconds / seconds:.1f}×" if seconds > 0 else "–"
    return f"{1e3 * seconds:.1f} ({times})"


# ------------------------------------------------------------------------------------- the driver


class RankError(RuntimeError):
    """A rank failed or took too long; the message says which and how."""


def run_ranks(lab: Lab, job: Job) -> dict[str, Any]:
    """Run the job, one rank a host, and return the summary that rank 0 prints."""
    with tempfile.TemporaryDirectory(prefix="links-") as folder:
        outputs = [Path(folder, f"rank{rank}.out") for rank in range(lab.hosts)]
        errors = [Path(folder, f"rank{rank}.err") for rank in range(lab.hosts)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, (out, err) in enumerate(zip(outputs, errors, strict=True)):
                processes.append(start_rank(lab, rank, job, out, err))
            wait(processes, errors, outputs[0], job)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        summary: dict[str, Any] = json.loads(outputs[0].read_text().splitlines()[-1])
        return summary


def start_rank(lab: Lab, rank: int, job: Job, out: Path, err: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {
        "RANK": str(rank),
        "WORLD_SIZE": str(lab.hosts),
        "MASTER_ADDR": lab.address(0),
        "MASTER_PORT": "29500",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
    }
    command = lab.command(rank, [sys.executable, __file__, "--as-rank", job.to_json()])
    with out.open("wb") as stdout, err.open("wb") as stderr:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


def wait(
    processes: Sequence["subprocess.Popen[bytes]"], errors: Sequence[Path], log: Path, job: Job
) -> None:
    """Follow the ranks until all have ended well.

    Raises:
        RankError: when a rank fails or the job's time is over.
    """
    total = len(job.methods) * (WARM_UP_STEPS + job.steps)
    deadline = time.monotonic() + job.limit
    with tqdm(total=total, unit="step", disable=None) as bar:
        while any(process.poll() is None for process in processes):
            bar.update(min(log.read_bytes().count(b"\n"), total) - bar.n)
            if any(process.poll() for process in processes):
                break
            if time.monotonic() > deadline:
                raise RankError(f"not done after {job.limit} s (--limit): killed")
            time.sleep(0.1)
    failed = [rank for rank, process in enumerate(processes) if process.poll()]
    if failed:
        raise RankError("\n".join(failure(rank, processes, errors) for rank in failed))


def failure(
    rank: int, processes: Sequence["subprocess.Popen[bytes]"], errors: Sequence[Path]
) -> str:
    last_lines = errors[rank].read_text(errors="replace").splitlines()[-12:]
    return "\n  ".join([f"rank {rank} ended with {processes[rank].returncode}:", *last_lines])


# ------------------------------------------------------------------------------- the command line


def parse_rate(text: str) -> int:
    """Bits per second of a rate such as "100mbit"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", text.lower())
    rate = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if rate < UNITS["mbit"]:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate of at least 1mbit, such as 100mbit")
    return rate


def checked_rate(text: str) -> str:
    parse_rate(text)
    return text.lower()


def density(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no density: expected 0 < density <= 1")
    return value


def at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number >= {least}")
        return int(text)

    return parse


def writable_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: not a file in a folder that is")
    return path


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--rate", nargs="+", type=checked_rate, default=["1gbit"], help="of each link: 100mbit …")
    add(
        "--recipes",
        nargs="*",
        default=list(RECIPES),
        metavar="NAME[,WORD=VALUE...]",
        help="beside dense, with words of the recipe, such as majority_vote,density=0.01; "
        f"default: {' '.join(RECIPES)}",
    )
    add(
        "--density",
        nargs="+",
        type=density,
        default=[0.001],
        help="of every recipe that has one and is not given its own",
    )
    add("--steps", type=at_least(1), default=10, help="measured for each method")
    add("--ranks", type=at_least(2), default=4)
    add("--limit", type=at_least(1), default=900, help="seconds that the ranks may take, per rate")
    add("--json", type=writable_file, metavar="FILE", help="write all figures there")
    return parser


def methods(texts: Sequence[str], densities: Sequence[float]) -> Iterator[Method]:
    """The baselines, then every recipe at every density.

    Raises:
        ValueError: for a recipe or a word that the package does not have.
    """
    yield DENSE
    yield NO_EXCHANGE
    for text in texts:
        if text == FP16.name:
            yield FP16
            continue
        name, options = split(text)
        words = inspect.signature(recipe(name)).parameters
        free = "density" in words and "density" not in options
        for each in [{"density": d} for d in densities] if free else [{}]:
            called = options | each
            try:
                make(name, called)  # so that what is wrong with it shows before the ranks start
            except (TypeError, ValueError) as error:
                raise ValueError(f"--recipes: {text}: {error}") from None
            yield Method(name, tuple(called.items()))


def split(text: str) -> tuple[str, dict[str, Any]]:
    """A recipe's name and words. Those behind ``down=``, which comes last, are of the way back."""
    ours, answers, down = text.partition(",down=")
    name, *words = ours.split(",")
    return name, dict(map(word, words)) | ({"down": down} if answers else {})


def make(name: str, options: dict[str, Any]) -> Any:
    """A recipe from what can travel to the ranks as text."""
    if "down" in options:
        options = options | {"down": make(*split(options["down"]))}
    return recipe(name)(**options)


def recipe(name: str) -> Callable[..., object]:
    import ddp_compress as dc

    if name not in dc.recipes.__all__:
        expected = ", ".join(["fp16", *dc.recipes.__all__])
        raise ValueError(f"--recipes: expected {expected}; got {name!r}")
    return getattr(dc.recipes, name)


def word(text: str) -> tuple[str, Any]:
    """One option of a recipe, such as ``variant=add_drop`` or ``bits=2``."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--recipes: expected WORD=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def main() -> int:
    options = argument_parser().parse_args()
    console = Console(width=max(Console().width, 140))
    exit_on_signals()
    results: list[dict[str, Any]] = []
    try:
        chosen = dict.fromkeys(methods(options.recipes, options.density))
        job = Job(list(chosen), options.steps, options.limit, driver=os.getpid())
        with lab(options.ranks) as hosts:
            for rate in options.rate:
                bits = parse_rate(rate)
                hosts.shape(bits)
                load = os.getloadavg()[0]
                result = run_ranks(hosts, job) | {"load_before": load}
                console.print(render(rate, options.ranks, result))
                results.append({"rate": rate, "burst_bytes": burst_bytes(bits), **result})
                if options.json:
                    text = json.dumps(describe(options, results), indent=2)
                    options.json.write_text(text + "\n")
    except (LabError, RankError, ValueError, ImportError) as error:
        print(f"links.py: {error}", file=sys.stderr)
        return 1
    return 0


def describe(options: argparse.Namespace, results: list[dict[str, Any]]) -> dict[str, Any]:
    """All figures of a run, and what they were measured on."""
    return {
        "parameters": PARAMETERS,
        "dense_bytes": DENSE_BYTES,
        "ranks": options.ranks,
        "steps": options.steps,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "results": results,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        rank_main(Job.from_json(sys.argv[2]))
    else:
        sys.exit(main())
