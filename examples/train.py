"""Train on several ranks and let the gradients travel compressed.

torchrun --nproc_per_node=4 examples/train.py --recipe sbc --density 0.01
torchrun --nproc_per_node=4 examples/train.py --recipe sbc --within 2
torchrun --nproc_per_node=4 examples/train.py --recipe sbc --shard 2
torchrun --nproc_per_node=4 --max-restarts=3 examples/train.py --checkpoint runs/one

The second acts as two nodes of two ranks each; on several hosts it is ``--within node``. The third
has two replicas, each sharded over two ranks. The last goes on where a rank or a host has died: see
docs/checkpoints.md.

This is an ordinary DistributedDataParallel script. What compression adds to it is one line,
``dc.attach(model, recipe)`` in ``traffic.py``; with ``--period`` two, and one at the end.
"""

import itertools
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

import ddp_compress as dc
from data import Samples, Split, image_task, text_task
from models import ByteModel, ConvNet, PlainConvNet, count_parameters
from options import fail, parse_args
from report import Journal, Measurement, Report
from sharding import LocalModel, LocalOptimizer, cut_up, put_together, replicas_and_shards
from traffic import attach, bucket_cap_mb, holds_momentum, make_recipe

AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}
SILENCE = timedelta(minutes=2)  # from a rank that makes the others give it up


def main() -> None:
    """Read the command line and the data, train, report."""
    args = parse_args()
    if "RANK" not in os.environ:
        fail("start it with torchrun: torchrun --nproc_per_node=4 examples/train.py")
    try:
        recipe = make_recipe(args)
        data = load(args, int(os.environ["WORLD_SIZE"]))
    except (OSError, TypeError, ValueError) as error:
        fail(str(error))

    for name in ("within", "shard"):
        each = getattr(args, name)
        if isinstance(each, int) and int(os.environ["WORLD_SIZE"]) % each:
            fail(f"--{name} {each} does not divide {os.environ['WORLD_SIZE']} ranks")

    with process_group() as device:
        torch.manual_seed(args.seed)
        report = train(args, recipe, data, device)
        if dist.get_rank() == 0:
            report.print()
            if args.json:
                report.write_json(args.json)
            if args.plot:
                report.write_plot(args.plot)


def load(args: Namespace, world_size: int) -> Split:
    """Training and validation data; every rank must find a sample in every batch."""
    split = text_task(args.data) if args.task == "lm" else image_task(args.data)
    if not world_size <= args.batch_size <= len(split.train):
        raise ValueError(
            f"--batch-size must lie between {world_size}, a sample for each rank, and "
            f"{len(split.train)}, all training samples; got {args.batch_size}"
        )
    return split


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the ranks: one GPU each where there are enough, else the CPU."""
    on_gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    store, rank, world_size = meeting_place()
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=SILENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def meeting_place() -> tuple[dist.Store, int, int]:
    """Where ranks tell each other their addresses, this rank's number, and how many there are.

    torchrun may keep that place from restart to restart, with the addresses of the dead in it. So
    every restart takes a corner of its own. Several torchruns do not count restarts alike: they
    must be told to open a new place.
    """
    store, rank, world_size = next(rendezvous("env://", timeout=SILENCE))
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if os.environ["GROUP_WORLD_SIZE"] == "1":
        store = dist.PrefixStore(f"restart {restarts}", store)
    elif rank == 0 and restarts == "0" and keeps_the_place():
        print(
            "train.py: restarts may find the addresses of dead ranks and fail. Give torchrun "
            "--rdzv-backend=c10d --rdzv-endpoint=HOST:PORT in place of --master-addr and "
            "--master-port, and export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
            file=sys.stderr,
        )
    return store, rank, world_size


def keeps_the_place() -> bool:
    """Whether torchrun has one place for all restarts, and may restart."""
    shared = os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    return shared and os.environ["TORCHELASTIC_MAX_RESTARTS"] != "0"


def train(args: Namespace, recipe: object, data: Split, device: torch.device) -> Report:
    """The training loop."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    network = make_network(args, data).to(device)
    elements = count_parameters(network)
    dropout = make_dropout(args, network)
    model, group = network, None
    if args.shard:
        mesh = replicas_and_shards(device, args.shard)
        cut_up(network, mesh)
        group = mesh["replicate"].get_group()
    else:
        model = DistributedDataParallel(
            dropout.sub_model if dropout else network,
            bucket_cap_mb=bucket_cap_mb(args.recipe, elements),
        )

    # Two momenta, one in the recipe and one in the optimizer, would be one too many.
    momentum = 0.0 if holds_momentum(args) else args.momentum
    sgd = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=momentum)
    optimizer, state, meter = attach(model, sgd, args, recipe, group)
    if dropout and isinstance(optimizer, dc.LocalUpdates):
        dropout.attach(optimizer)
    scheduler = LambdaLR(optimizer, lambda step: warmup_cosine(step, args.steps))
    scaler = torch.amp.GradScaler(
        device.type, growth_interval=args.growth_interval, enabled=args.amp == "fp16"
    )
    if state:
        state.use_scaler(scaler)  # residuals are of unscaled gradients
    journal = Journal()

    checkpoints, done = None, 0
    if args.checkpoint:
        parts: dict[str, Any] = {"model": network, "optimizer": optimizer}
        if args.shard:
            parts = {"model": LocalModel(network), "optimizer": LocalOptimizer(sgd)}
        parts |= {"scheduler": scheduler, "scaler": scaler, "journal": journal}
        parts |= {"compression": state} if state else {}
        parts |= {"sub_model": dropout.sub_model, "dropout": dropout} if dropout else {}
        checkpoints = dc.Checkpoints(args.checkpoint, **parts)
        done = checkpoints.load()

    stream = batches(data.train, args.batch_size, args.seed, done)
    evaluate_at = {args.steps * i // args.evaluations for i in range(1, args.evaluations + 1)}
    start = time.perf_counter()

    steps = range(done + 1, args.steps + 1)
    progress = tqdm(steps, unit="step", initial=done, total=args.steps, disable=rank != 0)
    for step in progress:
        if dropout and (step - 1) % args.period == 0:
            dropout.draw((step - 1) // args.period)
        inputs, targets = (tensor.to(device) for tensor in next(stream))
        # Shares may be uneven: the mean over ranks is to be the mean over the batch.
        weight = len(targets) * world_size / args.batch_size
        with torch.autocast(device.type, AMP.get(args.amp), enabled=args.amp is not None):
            loss = weight * cross_entropy(model(inputs), targets)
        journal.scales.append(scaler.get_scale())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        if step == args.steps and isinstance(optimizer, dc.LocalUpdates):
            optimizer.synchronize()  # before, every rank evaluates the weights it has
        if dropout and (step % args.period == 0 or step == args.steps):
            dropout.merge()  # into the network that is evaluated

        journal.losses.append(loss.detach())
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step == args.warmup_steps:
            journal.warmup = meter(step)
        if step in evaluate_at:
            train_loss = mean_over_ranks(torch.stack(journal.losses).mean())
            journal.seconds += time.perf_counter() - start
            evaluated = network
            if args.shard:
                evaluated = make_network(args, data).to(device)
                put_together(network, evaluated)
            validation_loss, accuracy = evaluate(evaluated, data.validation, device)
            sent_bytes = meter(step).sent_bytes
            losses = train_loss, validation_loss
            journal.add(Measurement(step, *losses, accuracy, sent_bytes, journal.seconds))
            start = time.perf_counter()
        if checkpoints and step % args.checkpoint_every == 0:
            checkpoints.save(step)

    whole_run = meter(args.steps)
    after_warmup = whole_run - journal.warmup
    return Report(args, world_size, elements, journal, whole_run, after_warmup)


def make_network(args: Namespace, data: Split) -> nn.Module:
    """The network for the task."""
    if args.task == "lm":
        return ByteModel()
    pixels, _ = data.train[0]
    return PlainConvNet(len(pixels)) if args.federated_dropout else ConvNet(len(pixels))


def make_dropout(args: Namespace, network: nn.Module) -> dc.FederatedDropout | None:
    """Smaller sub-models of the network, another in every round of local steps."""
    if args.federated_dropout is None:
        return None
    return dc.FederatedDropout(network, args.federated_dropout, args.seed)


def batches(dataset: Samples, batch_size: int, seed: int, done: int) -> Iterator[list[Tensor]]:
    """This rank's shares of the batches, without end, after those already done."""
    return iter(DataLoader(dataset, batch_sampler=shares(len(dataset), batch_size, seed, done)))


def shares(samples: int, batch_size: int, seed: int, done: int) -> Iterator[list[int]]:
    """The samples in them.

    A batch depends on seed and step alone, and the ranks, however many, share it among them.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    epoch, skip = divmod(done, samples // batch_size)
    for number in itertools.count(epoch):
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed + number))
        whole = order.split(batch_size)[: samples // batch_size]
        for batch in whole[skip if number == epoch else 0 :]:
            yield batch[rank::world_size].tolist()


def warmup_cosine(step: int, steps: int) -> float:
    """Learning-rate factor: rises over the first tenth, then falls to 0 as a cosine."""
    rise = min(1.0, (step + 1) / max(1, steps // 10))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy in nats; ``(…, classes)`` against ``(…)``."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


@torch.no_grad()
def evaluate(network: nn.Module, samples: Samples, device: torch.device) -> tuple[float, float]:
    """Validation loss and accuracy; every rank takes its share of the samples."""
    mine = Subset(samples, range(dist.get_rank(), len(samples), dist.get_world_size()))
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, hits, predictions
    network.eval()
    for batch in DataLoader(mine, batch_size=64):
        inputs, targets = (tensor.to(device) for tensor in batch)
        logits = network(inputs)
        sums[0] += cross_entropy(logits, targets, reduction="sum")
        sums[1] += (logits.argmax(-1) == targets).sum()
        sums[2] += targets.numel()
    network.train()
    dist.all_reduce(sums)
    loss, hits, predictions = sums.tolist()
    return loss / predictions, hits / predictions


def mean_over_ranks(value: Tensor) -> float:
    """The mean of a scalar over all ranks."""
    total = value.clone()
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


if __name__ == "__main__":
    main()
